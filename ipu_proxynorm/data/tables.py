"""Images in data sets of Hugging Face's ``datasets``: saved by it, or Parquet files of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from torch import Tensor

from ipu_proxynorm.data.decoding import MOST_BYTES, Reason, Unreadable, cannot_read, decode, opened
from ipu_proxynorm.data.files import Listing
from ipu_proxynorm.data.image_data import IMAGENET, ImageData, Request, image_data
from ipu_proxynorm.data.image_set import ListedImages
from ipu_proxynorm.data.labels import numbered
from ipu_proxynorm.data.shards import PARTS, as_word
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.extras import install_command

_EXPECTED = (
    "a folder that DatasetDict.save_to_disk wrote, or one of Parquet files with train and "
    "validation (or test) as words in their names"
)


class TableImages(ListedImages):
    """Rows of a column of images."""

    def __init__(self, rows: Any, column: str, listing: Listing) -> None:
        super().__init__(listing)
        self.rows, self.column = rows, column

    def chosen(self, numbers: Sequence[int]) -> TableImages:
        """Return the rows of these numbers."""
        part = super().chosen(numbers)
        assert isinstance(part, TableImages)
        part.rows = self.rows.select(list(numbers))
        return part

    def read(self, index: int) -> Tensor:
        """Return the pixels of one row."""
        try:
            value = self.rows[index][self.column]
            content = value["bytes"]
            if not content:
                with opened(Path(value["path"])) as file:
                    content = file.read()
        except Exception as error:
            raise cannot_read(error) from error
        if len(content) > MOST_BYTES:
            raise Unreadable(f"has {len(content)} bytes; at most {MOST_BYTES}", Reason.TOO_LARGE)
        return decode(content)


def huggingface(request: Request) -> ImageData:
    """Return the RGB images of a data set of Hugging Face's ``datasets``, 224x224 by default.

    The image column is the one of type ``Image``, the classes those of ``data.label``, by default
    the only column of type ``ClassLabel``; its names are the classes'. Crops are those of
    `datasets.image_folder`. Nothing is downloaded.

    Raises:
        UserError: the library is not installed, there is no such data set, or a column is missing
            or of another type.
    """
    library = _library()
    path = request.place("huggingface", _EXPECTED)
    blame = f"data.path={request.path!r}"
    parts = _parts(library, path, blame)
    features = parts[0].features
    images = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    if len(images) != 1:
        raise UserError(f"{blame}: has {len(images)} columns of type Image; expected one")
    label = _label(library, features, request.label, blame)
    names = getattr(features[label], "names", None) or ()
    texts = [[str(value) for value in part[label]] for part in parts]
    classes, numbers = numbered((texts[0], texts[1]), names, blame)
    tables = [
        _table(library, part, images[0], Listing(classes, rows, labels, []))
        for part, labels, rows in zip(parts, numbers, _row_names(parts))
    ]
    return image_data(
        "huggingface",
        (tables[0], tables[1]),
        len(classes),
        request,
        224,
        "resized",
        IMAGENET,
        names=classes,
    )


def _row_names(parts: Sequence[Any]) -> Iterator[List[str]]:
    for name, part in zip(("train", "validation"), parts):
        yield [f"{name}[{number}]" for number in range(len(part))]


def _table(library: Any, part: Any, column: str, listing: Listing) -> TableImages:
    rows = part.select_columns([column]).cast_column(column, library.Image(decode=False))
    return TableImages(rows, column, listing)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"data.name=huggingface needs the package datasets ({error}): "
            f"{install_command('huggingface')}"
        ) from error
    return datasets


def _parts(library: Any, path: Path, blame: str) -> Tuple[Any, Any]:
    """Return the tables of training and of validation."""
    quiet = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        if (path / "dataset_dict.json").is_file():
            found: Dict[str, Any] = dict(library.load_from_disk(str(path)))
        else:
            files = _parquet(path, blame)
            found = dict(library.load_dataset("parquet", data_files=files))
    except UserError:
        raise
    except Exception as error:  # of Arrow, of the library, of the system
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{blame}: cannot be read ({reason}); expected {_EXPECTED}") from error
    finally:
        if not quiet:
            library.enable_progress_bars()
    tables = [next((found[word] for word in words if word in found), None) for words in PARTS]
    if tables[0] is None or tables[1] is None:
        raise UserError(
            f"{blame}: has {', '.join(found) or 'no parts'}; expected train and validation, or test"
        )
    return tables[0], tables[1]


def _parquet(path: Path, blame: str) -> Dict[str, List[str]]:
    """Return the Parquet files of each part, by name."""
    found: Dict[str, List[str]] = {}
    for file in sorted(path.rglob("*.parquet")):
        for words in PARTS:
            named = as_word(words).search(file.relative_to(path).as_posix().lower())
            if named:
                found.setdefault(named[1], []).append(str(file))
                break
    if not found:
        raise UserError(f"{blame}: no data set in it; expected {_EXPECTED}")
    return found


def _label(library: Any, features: Any, wanted: Any, blame: str) -> str:
    """Return the column of classes."""
    classes = [name for name, kind in features.items() if isinstance(kind, library.ClassLabel)]
    if wanted is not None:
        if wanted not in features:
            raise UserError(f"data.label={wanted}: no such column; there are {', '.join(features)}")
        return str(wanted)
    if len(classes) != 1:
        listed = f" ({', '.join(classes)})" if classes else ""
        raise UserError(
            f"{blame}: has {len(classes)} columns of type ClassLabel{listed}; name the column of "
            f"classes with data.label, one of {', '.join(features)}"
        )
    return str(classes[0])
