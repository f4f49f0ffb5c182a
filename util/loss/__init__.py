"""Losses by name, and their weighted sum over a network's outputs.

To add a loss, write the function (logits (N, C, H, W), label (N, H, W), ignore_label, ...) -> scalar and one line in
`LOSSES` (or name it by its dotted path in an experiment). There are two kinds. One that takes `normaliser` is a mean
over pixels: the sums over the parts of a batch and over the processes add up, so the result does not depend on how
the batch is shared out. The others (hard pixels, regions) are computed on what one process sees in one forward pass,
and averaged over the parts and the processes.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from util import UserError
from util.loss.boundary import boundary, detail, near_boundary
from util.loss.pixel import cascade, cross_entropy, ohem_cross_entropy, relaxed_cross_entropy, valid_weight
from util.loss.region import dice, lovasz_softmax, presence

LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "ohem": ohem_cross_entropy,
    "relaxed": relaxed_cross_entropy,
    "dice": dice,
    "lovasz": lovasz_softmax,
}

OURS = dict(LOSSES)  # which can be tried with two classes; a loss of the user's may know how many it has

# Losses of outputs that are no full-size maps of logits: (output, label (N, H, W), ignore_label) -> scalar.
OTHER_LOSSES: dict[str, Callable[..., Tensor]] = {
    "presence": presence,
    "cascade": cascade,
    "boundary": boundary,
    "detail": detail,
}

# Outputs that have a loss of their own, by the name that networks give them.
OUTPUTS = {
    "se": "presence",
    "quarter": "cascade",
    "eighth": "cascade",
    "sixteenth": "cascade",
    "boundary": "boundary",
    "detail": "detail",
}

# Further losses for the main output that read another one, and which: the loss of the output maps, on what the
# network itself takes for a boundary.
JOINT_LOSSES = {"boundary_aware": "boundary"}

# Arguments that are no options of one loss: the caller, or another key of the experiment, gives them.
SHARED = ("logits", "label", "ignore_label", "class_weights", "label_smoothing", "normaliser")


class SegLoss(nn.Module):
    """Weighted sum of a loss over outputs, and of further losses.

    An output that `OUTPUTS` or `outputs` names has the loss named there, with its default arguments.

    Args:
        weights: weight of each output by its name; an output that is not listed is an error.
        class_weights: weight of each class, in class order.
        label_smoothing: for the losses that have it; see `cross_entropy`.
        name: loss of every output map, an entry of `LOSSES`.
        options: its further arguments.
        extra: weight by name of losses that are added for the output "out", with their default arguments; or, of
            `JOINT_LOSSES`, with those of the loss of the output maps.
        outputs: loss by name of single outputs, entries of `LOSSES` or `OTHER_LOSSES`.

    Raises:
        UserError: an unknown loss or option, a number of class weights that is not `num_classes`, or label
            smoothing for losses that have none.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weights: Mapping[str, float],
        num_classes: int,
        ignore_label: int = 255,
        class_weights: tuple[float, ...] | None = None,
        label_smoothing: float = 0.0,
        name: str = "cross_entropy",
        options: Mapping[str, object] | None = None,
        extra: Mapping[str, float] | None = None,
        outputs: Mapping[str, str] | None = None,
    ):
        super().__init__()
        if class_weights is not None and len(class_weights) != num_classes:
            raise UserError(f"loss.class_weights: {len(class_weights)} weights for {num_classes} classes")
        self.name, self.options, self.extra = name, dict(options or {}), dict(extra or {})
        self.num_classes = num_classes
        self.outputs = {**OUTPUTS, **(outputs or {})}
        check_loss(name, self.options, label_smoothing, self.extra, self.outputs)
        if class_weights is not None and "class_weights" not in _arguments(name):
            raise UserError(f"loss.class_weights: loss {name!r} takes none; leave them out (loss.class_weights=null)")
        self.arguments = {loss: frozenset(_arguments(loss)) for loss in LOSSES}
        self.weights, self.ignore_label, self.label_smoothing = dict(weights), ignore_label, label_smoothing
        table = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", table)

    def normaliser(self, label: Tensor) -> Tensor:
        """Return the divisors of the sums of a label, (2,).

        They add up over micro-batches and processes: sums over pixels are divided by the first, all else by the second.

        Args:
            label: (N, H, W).

        Returns:
            float32: the weight of the pixels that count; and 1, for one micro-batch.
        """
        pixels = valid_weight(label, self.ignore_label, self.class_weights)
        return torch.stack([pixels, torch.ones_like(pixels)])

    def forward(self, outputs: dict[str, Tensor], label: Tensor, normaliser: Tensor | None = None):
        """Return the total (scalar with a gradient) and the unweighted, detached terms.

        Args:
            outputs: name -> logits (N, C, H, W), or what the output's own loss reads.
            label: (N, H, W).
            normaliser: that of the whole batch, where this is a part of it.

        Raises:
            UserError: an output has no weight or another size, or a loss gives no scalar with a gradient.
        """
        if not isinstance(outputs, Mapping):
            raise UserError(f"the network gives a {type(outputs).__name__}; a network gives a dict of logits")
        unknown = sorted(set(outputs) - set(self.weights))
        if unknown:
            raise UserError(f"loss.weights has no weight for the network's output {unknown}; give it one, 0 to drop")
        if normaliser is None:
            normaliser = self.normaliser(label)
        total: Tensor | int = 0
        terms: dict[str, Tensor] = {}
        for output, logits in outputs.items():
            own = self.outputs.get(output)
            name, options = (self.name, self.options) if own is None else (own, {})
            if name in LOSSES:
                self._check_logits(output, logits, label)
            term = self._term(name, options, logits, label, normaliser)
            total, terms[output] = total + self.weights[output] * term, term.detach()
        for name, weight in self.extra.items():
            if name in JOINT_LOSSES:
                term = self._boundary_aware(outputs, label) / normaliser[1]
            else:
                term = self._term(name, {}, outputs["out"], label, normaliser)
            total, terms[name] = total + weight * term, term.detach()
        return total, terms

    def _boundary_aware(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        if "boundary" not in outputs:
            raise UserError("loss.extra: boundary_aware reads the output 'boundary', which this network does not give")
        near = near_boundary(label, outputs["boundary"], self.ignore_label)
        return self._term(self.name, self.options, outputs["out"], near, self.normaliser(near))

    def _check_logits(self, output: str, logits: Tensor, label: Tensor) -> None:
        wanted = len(label), self.num_classes, *label.shape[-2:]
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted or not logits.is_floating_point():
            raise UserError(
                f"the network's output {output!r} is {_kind(logits)}; logits are float (pictures, classes, height, "
                f"width), here {wanted}"
            )

    def _term(self, name: str, options: dict, logits: Tensor, label: Tensor, normaliser: Tensor) -> Tensor:
        if name in OTHER_LOSSES:
            return OTHER_LOSSES[name](logits, label, self.ignore_label) / normaliser[1]
        taken = self.arguments[name]
        options = dict(options)
        if "class_weights" in taken:
            options["class_weights"] = self.class_weights
        if "label_smoothing" in taken:
            options["label_smoothing"] = self.label_smoothing
        if "normaliser" in taken:
            options["normaliser"] = normaliser[0]
        term = LOSSES[name](logits, label, self.ignore_label, **options)
        if not isinstance(term, Tensor) or term.ndim:
            raise UserError(f"loss {name!r} gave {_kind(term)}; a loss gives a scalar, such as the mean over pixels")
        if logits.requires_grad and not term.requires_grad:
            raise UserError(
                f"loss {name!r} gave a scalar without a gradient; compute it from the logits themselves, neither "
                "detached nor by argmax, and where no pixel counts give logits.sum() * 0"
            )
        return term if "normaliser" in taken else term / normaliser[1]


def check_loss(
    name: str,
    options: Mapping[str, object],
    label_smoothing: float = 0.0,
    extra: Iterable[str] = (),
    outputs: Mapping[str, str] | None = None,
) -> None:
    """Check the keys of an experiment's section `loss`.

    Raises:
        UserError: begins with the key. An unknown loss or option (with the nearest one), a value of a wrong
            type or out of range, label smoothing without a loss that has it.
    """
    for key, loss in [("name", name), *(("extra", other) for other in extra)]:
        known = {**LOSSES, **JOINT_LOSSES} if key == "extra" else LOSSES
        if loss not in known:
            raise UserError(f"{key}: {_unknown('loss', loss, known)}")
    for output, loss in (outputs or {}).items():
        if loss not in LOSSES and loss not in OTHER_LOSSES:
            raise UserError(f"outputs.{output}: {_unknown('loss', loss, {**LOSSES, **OTHER_LOSSES})}")
    plain = (name, *(loss for loss in extra if loss in LOSSES))
    if label_smoothing and not any("label_smoothing" in _arguments(loss) for loss in plain):
        raise UserError(f"label_smoothing: loss {name!r} has none; leave it 0")
    arguments = {key: argument for key, argument in _arguments(name).items() if key not in SHARED}
    for option, value in options.items():
        if option in SHARED:
            raise UserError(f"options: {option} is no option of a loss; see the keys of the section loss")
        if option not in arguments:
            raise UserError(f"options: {_unknown(f'option of loss {name!r}:', option, arguments)}")
        wanted = arguments[option].annotation
        if wanted in (bool, int, float) and not _fits(value, wanted):
            raise UserError(f"options: {option} of loss {name!r} must be {wanted.__name__}, not {value!r}")
    _check_signature("name", name, options)
    for key, loss in [
        *(("extra", loss) for loss in extra),
        *((f"outputs.{o}", loss) for o, loss in (outputs or {}).items()),
    ]:
        if loss in LOSSES:
            _check_signature(key, loss, {})
    if LOSSES[name] is not OURS.get(name):
        return
    try:
        LOSSES[name](torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.uint8), 255, **options)
    except ValueError as error:
        raise UserError(f"options: {error}") from None


def _check_signature(key: str, name: str, options: Iterable[str]) -> None:
    """Refuse what cannot be called as a loss.

    Raises:
        UserError: begins with the key.
    """
    taken, given = _arguments(name), dict.fromkeys(options)
    given |= dict.fromkeys(each for each in ("class_weights", "label_smoothing", "normaliser") if each in taken)
    wanted = "a loss is a function (logits, label, ignore_label, options...) -> scalar"
    if inspect.isclass(LOSSES[name]):
        raise UserError(f"{key}: {name} is a class; {wanted}")
    try:
        inspect.signature(LOSSES[name]).bind(None, None, None, **given)
    except TypeError as error:
        raise UserError(f"{key}: {name}({', '.join(taken)}): {error}; {wanted}") from None


def _kind(value: object) -> str:
    """Tell what a value is where a tensor is expected."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(LOSSES[name]).parameters


def _unknown(kind: str, name: str, known: Mapping) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}"


def _fits(value: object, wanted: type) -> bool:
    """Tell whether `value` is of that plain type.

    A whole number is a float, but a bool is no number.
    """
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
