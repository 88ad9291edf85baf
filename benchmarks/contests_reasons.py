"""Why ours is not first, contest by contest: a sentence or two each, shown where the verdict is not "first"."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "centralization": (
        "The peer changes the gradient in place and looks at nothing. Ours keeps `p.grad` as `backward()` left it, which takes a second buffer, and refuses gradients "
        "that are not finite, which reads them once more: no step that does both can be as fast. The row with `inplace=True, check_finite=False` does neither; "
        "what it still lacks are calls from Python, some for each weight, which weigh less the larger the weights are."
    ),
    "channel-l2": (
        "Near the floor: by hand, too, every gradient is read twice and written once, in two calls. Ours also looks for numbers that are not finite."
    ),
    "orthonormal-adam": (
        "Nearly the same arithmetic: ours takes 11.3np² flops (gradient, retraction, projection of the momentum), POGO six products, 12np². "
        "All three keep one second moment a matrix."
    ),
    "all-values": (
        "The same SVDs of half of the frequencies, by hand with more memory and for circular padding without stride, groups or dilation only. Gram matrices are faster and lose digits: "
        "so does `fast=True`, which errs more than this contest accepts."
    ),
    "self-convolution": (
        "By hand it is the same convolution and the same product with its gradient, for one stride and one padding. Ours forms the gradient itself, without a graph, and was not made faster: open."
    ),
    "langevin-free": (
        "By hand the numbers come from torch's global generator, in one call a weight. Ours are a function of seed, group and step, so that a resumed run and every process draw the same with no state to save; "
        "gradients are looked at for numbers that are not finite, and the kinetic energy can be asked for. On a network this small that is mostly Python; of large tensors the normal numbers themselves "
        "take most of the time, for both ([benchmarks of Langevin steps](benchmarks-langevin.md))."
    ),
    "decay": (
        "By hand it is one multiplication of all weights after the step. Ours looks for gradients that are not finite before any weight moves, which reads 4 bytes a weight more (compare the row with "
        "`check_finite=False`), and asks for each weight its gate and its group's learning rate; it is level with the package that decays likewise."
    ),
    "pruning": (
        "Both find one threshold for all weights. Ours breaks ties by position, so that the count is exact where many weights are equal, and makes masks that can be tabled, saved and "
        "attached to an optimizer; by hand there is neither."
    ),
}
