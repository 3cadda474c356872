"""Classes as they stand beside images, numbers or names, as numbers from 0."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from ipu_proxynorm.errors import UserError


def numbered(
    parts: Tuple[Sequence[str], Sequence[str]], names: Sequence[str], where: str
) -> Tuple[List[str], Tuple[List[int], List[int]]]:
    """Return the names of the classes, and the class number of each sample.

    Args:
        parts: the class of each sample of training and of validation: its number or its name.
        names: of the classes, in order; none: as training has them, names in alphabetical order.
        where: what is to blame, e.g. ``data.path='x'``.

    Raises:
        UserError: a class has no sample in training, or is not one of the names.
    """
    training, validation = parts
    if all(text.isdecimal() for text in (*training, *validation)):
        training, validation = ([str(int(text)) for text in part] for part in parts)
        known = [str(number) for number in range(len(names) or len(set(training)))]
    else:
        known = list(names) or sorted(set(training))
    numbers = {name: number for number, name in enumerate(known)}
    for part, labels in (("training", training), ("validation", validation)):
        strange = sorted(set(labels) - numbers.keys())
        if strange:
            listed = f"{', '.join(known[:3])}{', ...' if len(known) > 3 else ''}"
            raise UserError(
                f"{where}: a {part} sample is of class {strange[0]!r}; expected one of the "
                f"{len(known)} classes ({listed}): numbers from 0 without gaps, or names, of which "
                f"training has all"
            )
    return list(names or known), (
        [numbers[text] for text in training],
        [numbers[text] for text in validation],
    )
