"""Numbers that a part refuses, in one sentence that names the field."""

from collections.abc import Sequence


def at_least(least: float, group: str, **values: float | Sequence[float] | None) -> None:
    """Refuse fields of `group` (`decoder`, `encoder.backbone`) below `least`, and lists that hold such a number; None
    passes.

    Raises:
        ValueError: `decoder.hidden=0: at least 1`.
    """
    for name, value in values.items():
        for each in value if isinstance(value, Sequence) else [value]:
            if each is not None and not each >= least:  # `not >=` also refuses nan
                raise ValueError(f"{group}.{name}={value}: at least {least}".lstrip("."))


def share(group: str, **values: float) -> None:
    """Refuse fields outside [0, 1): of all of something, but never all of it.

    Raises:
        ValueError: `decoder.dropout=1.5: a share in [0, 1)`.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{group}.{name}={value}: a share in [0, 1)")


def divides(group: str, width: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width that they share.

    Raises:
        ValueError: `decoder.heads=3: does not divide the width 512`.
    """
    at_least(1, group, heads=heads)
    if width % heads:
        raise ValueError(f"{group}.heads={heads}: does not divide the width {width}")
