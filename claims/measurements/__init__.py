"""Short measurements that anybody can repeat: each takes less than about a minute and gives raw values.

`python -m claims --rerun cheap` runs them all and compares with what docs/claims/ has.
"""
