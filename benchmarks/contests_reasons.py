"""Why ours is not first, contest by contest: a sentence or two each, shown where the verdict is not "first"."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "centralization": (
        "The peer changes the gradient in place and looks at nothing. Ours keeps `p.grad` as `backward()` left it, in a buffer of its own, "
        "and refuses gradients that are not finite. How much of the difference that explains is not measured yet: open."
    ),
    "channel-l2": (
        "Near the floor: by hand, too, every gradient is read twice and written once, in two calls. Ours also looks for numbers that are not finite."
    ),
    "orthonormal-adam": (
        "Nearly the same arithmetic: ours takes 11.3np² flops (gradient, retraction, projection of the momentum), POGO six products, 12np². "
        "All three keep one second moment a matrix."
    ),
    "all-values": (
        "The same SVDs of half of the frequencies, by hand with several times the memory. Gram matrices are faster and lose digits: "
        "so does `fast=True`, which errs more than this contest accepts."
    ),
    "decay": (
        "By hand it is one multiplication in place over all weights at once. Ours takes a proximal step weight by weight. Open."
    ),
    "pruning": (
        "Both find the threshold by `kthvalue`. Ours breaks ties by position, so that the count is exact where many weights are equal, and makes "
        "masks that can be tabled, saved and attached to an optimizer; by hand there is neither. How much of the difference that explains is open."
    ),
}
