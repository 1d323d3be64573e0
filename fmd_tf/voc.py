"""Pascal VOC annotations: a folder of XML files and photos to typed, validated records.

A data set is a folder with `images/` and `annotations/`, one XML file a photo, as Kaggle's
`andrewmvd/face-mask-detection` has it. Every field that is used is checked, and all problems of
a folder are reported at once.
"""

from __future__ import annotations

import os
import re
import shlex
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from lxml import etree
from PIL import Image, ImageFile, UnidentifiedImageError

from fmd_tf import CLASS_NAMES, boxes
from fmd_tf.boxes import Box
from fmd_tf.errors import UserError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OTHER_SUFFIXES = (".gif", ".jpe", ".jfif", ".tif", ".tiff", ".heic", ".heif", ".avif")
"""Photos too, but TensorFlow does not decode them, or not by these names."""
# What Pillow calls them; MPO is a JPEG with more pictures behind it, as phones write.
_FORMATS = ("BMP", "JPEG", "MPO", "PNG", "WEBP")
MAX_PIXELS = 100_000_000
_ORIENTATION_TAG = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Face:
    """One annotated face.

    Attributes:
        label: Name of its class.
        box: Pixels as in `fmd_tf.boxes`, clipped to the photo.
    """

    label: str
    box: Box


@dataclass(frozen=True)
class Annotation:
    """One photo and its faces.

    Attributes:
        xml: The annotation file.
        photo: The photo file.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.
        faces: The faces, in the order of the file; may be empty.
        num_clipped: How many of the boxes reached beyond the photo.
        num_invalid: How many faces were left out with `skip_invalid`: there are more than
            `faces` in the photo.
    """

    xml: Path
    photo: Path
    width: int
    height: int
    faces: tuple[Face, ...]
    num_clipped: int = 0
    num_invalid: int = 0


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file: what was expected and what came."""

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {self.message}"


class AnnotationError(UserError):
    """A data set that cannot be used as it is.

    Attributes:
        problems: Everything that is wrong, in the order of the files.
    """

    def __init__(self, problems: Sequence[Problem], hint: str = ""):
        self.problems = tuple(problems)
        lines = [f"{len(self.problems)} problems in the annotations:", *map(str, self.problems)]
        super().__init__("\n".join([*lines, hint] if hint else lines))


@dataclass(frozen=True)
class Folder:
    """A data set's valid annotations, sorted by photo name, and what is wrong with the rest.

    Attributes:
        data_dir: The folder with `images/` and `annotations/`.
        class_names: Names of the classes, in order.
        annotations: One record a valid photo.
        problems: What was left out with `skip_invalid`, and why.
    """

    data_dir: Path
    class_names: tuple[str, ...]
    annotations: tuple[Annotation, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def num_clipped(self) -> int:
        """Number of boxes that reached beyond their photo and were clipped."""
        return sum(annotation.num_clipped for annotation in self.annotations)

    @property
    def num_without_faces(self) -> int:
        """Number of photos without a face."""
        return sum(not annotation.faces for annotation in self.annotations)


def read_folder(
    data_dir: Path | str,
    class_names: Sequence[str] = CLASS_NAMES,
    skip_invalid: bool = False,
) -> Folder:
    """Read and check all annotations of a folder, and decode every photo once to check it.

    Args:
        data_dir: Folder with `images/` and `annotations/`.
        class_names: Names that faces may have; default: the three of the Kaggle data set.
        skip_invalid: Leave out what is invalid instead of raising: a file whose XML or photo is
            unusable, and single faces that are.

    Returns:
        The valid annotations and the problems found.

    Raises:
        AnnotationError: The folders are missing or empty, nothing valid is left, or there are
            problems and `skip_invalid` is false.
    """
    data_dir = Path(data_dir)
    files = _annotation_files(data_dir)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        # Pillow warns of odd metadata and of huge photos; the latter are problems below.
        warnings.simplefilter("ignore")
        readers = list(pool.map(lambda xml: _Reader(xml, data_dir, class_names), files))
    problems = [problem for reader in readers for problem in reader.problems]
    annotations, doubles = _without_doubles([r.annotation for r in readers if r.annotation])
    problems += doubles
    problems += _passed_over(data_dir, readers)
    if problems and not skip_invalid:
        raise AnnotationError(problems, _hint(readers, class_names))
    if not annotations:
        raise AnnotationError(problems, "no valid annotation is left")
    annotations.sort(key=lambda annotation: _natural(annotation.photo.name))
    return Folder(data_dir, tuple(class_names), tuple(annotations), tuple(problems))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which photo 2 comes before photo 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _annotation_files(data_dir: Path) -> list[Path]:
    """List the XML files, or say what is missing of the layout."""
    for name in ("images", "annotations"):
        if not (data_dir / name).is_dir():
            message = "no such folder; expected a data set with images/ and annotations/ in it"
            raise AnnotationError([Problem(data_dir / name, None, message)])
    folder = data_dir / "annotations"
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
    if not files:
        raise AnnotationError([Problem(folder, None, "expected Pascal VOC .xml files, got none")])
    return sorted(files, key=lambda path: _natural(path.name))


def _without_doubles(
    annotations: Sequence[Annotation],
) -> tuple[list[Annotation], list[Problem]]:
    """Keep the first annotation of each photo."""
    first: dict[Path, Annotation] = {}
    problems = []
    for annotation in annotations:
        kept = first.setdefault(annotation.photo, annotation)
        if kept is not annotation:
            message = f"second annotation of {annotation.photo.name}; the first is {kept.xml.name}"
            problems.append(Problem(annotation.xml, None, message))
    return list(first.values()), problems


def _passed_over(data_dir: Path, readers: Sequence[_Reader]) -> list[Problem]:
    """Report what would be left out unnoticed, with the faces on it."""
    named = {reader.photo.name for reader in readers if reader.photo}
    unread = {reader.xml.stem for reader in readers if not reader.photo}
    problems = []
    for folder in (data_dir / "images", data_dir / "annotations"):
        for path in sorted(folder.iterdir()):
            message = _why_passed_over(path, named, unread)
            if message:
                problems.append(Problem(path, None, message))
    return problems


def _why_passed_over(path: Path, named: set[str], unread: set[str]) -> str | None:
    """Say why a file or folder is not looked at; None where it is, or holds nothing.

    Args:
        path: In images/ or annotations/.
        named: Photos that an annotation names.
        unread: Annotations that name none, without their ending.
    """
    suffix, is_photo = path.suffix.lower(), path.parent.name == "images"
    if path.is_dir():
        wanted = (*PHOTO_SUFFIXES, ".xml")
        if not path.name.startswith(".") and any(
            each.suffix.lower() in wanted for each in path.rglob("*")
        ):
            return "not looked into; expected all photos and .xml files in images/ and annotations/"
    elif is_photo and suffix in OTHER_SUFFIXES:
        return f"expected a photo of {', '.join(PHOTO_SUFFIXES)}; store it as PNG or JPEG"
    elif is_photo and suffix in PHOTO_SUFFIXES and not (path.name in named or path.stem in unread):
        return "photo without an annotation; expected an .xml file that names it"
    return None


def _hint(readers: Sequence[_Reader], class_names: Sequence[str]) -> str:
    """Say what to do: about unknown classes above all, since own data has its own names."""
    found = sum((reader.names for reader in readers), Counter[str]())
    hint = "Mend these files, or leave them out with --skip-invalid."
    unknown = [name for name, _ in found.most_common(20) if name not in class_names]
    if unknown:
        names = [name for name in class_names if name in found] + unknown
        counts = ", ".join(f"{name} ({found[name]})" for name in names)
        hint += f" Classes in the data: {counts}. A model of these is trained with --class-names"
        hint = f"{hint} {shlex.join(names)}"
    return hint


def read_boxes(xml: Path, width: int, height: int) -> tuple[Box, ...]:
    """Read the face boxes of one annotation, whatever its classes are called.

    Args:
        xml: The annotation file.
        width: Width of the photo in pixels.
        height: Height of the photo in pixels.

    Returns:
        The boxes clipped to the photo, in the order of the file; may be empty.

    Raises:
        AnnotationError: The file or a box in it is not usable, or it declares another size.
    """
    reader = _XmlReader(xml)
    root = reader.parse()
    boxes_found = [] if root is None else reader.boxes(root, width, height)
    if reader.problems:
        raise AnnotationError(reader.problems)
    return tuple(boxes_found)


def photo_name(xml: Path) -> str | None:
    """Return the name of the photo that a Pascal VOC file is of; None where it has none."""
    root = _XmlReader(xml).parse()
    return None if root is None else _named_photo(root) or None


def _named_photo(root: etree._Element) -> str:
    return (root.findtext("filename") or "").strip()


class _XmlReader:
    """Reads elements of one annotation file and collects what is wrong with it."""

    def __init__(self, xml: Path):
        self.xml = xml
        self.problems: list[Problem] = []
        self._num_clipped = 0

    def _fail(self, message: str, element: etree._Element | None = None) -> None:
        line = element.sourceline if element is not None else None
        self.problems.append(Problem(self.xml, line, message))

    def parse(self) -> etree._Element | None:
        """Parse without entities and network: a data set must not read other files."""
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        try:
            # Read here, as lxml takes names in UTF-8 only.
            root = etree.fromstring(self.xml.read_bytes(), parser)
        except etree.XMLSyntaxError as error:
            message = f"expected XML, got: {error.msg}"
            self.problems.append(Problem(self.xml, error.position[0], message))
            return None
        except OSError as error:
            self._fail(f"cannot be read: {error}")
            return None
        if root.tag != "annotation":
            self._fail(f"expected the element <annotation>, got <{root.tag}>", root)
            return None
        return root

    def boxes(self, root: etree._Element, width: int, height: int) -> list[Box]:
        """Return the usable boxes, if the declared size is that of the photo."""
        size = self._size(root)
        if size is None:
            return []
        if size != (width, height):
            declared = f"{size[0]}x{size[1]}"
            self._fail(f"expected the annotation of {width}x{height} pixels, got {declared}")
            return []
        found = [self._box(element, width, height) for element in root.findall("object")]
        return [box for box in found if box]

    def _size(self, root: etree._Element) -> tuple[int, int] | None:
        values = [self._number(root, f"size/{name}") for name in ("width", "height")]
        if values[0] is None or values[1] is None:
            return None
        return values[0], values[1]

    def _number(self, parent: etree._Element, name: str) -> int | None:
        """Return a pixel count; some tools write 12.0, which is rounded to pixels."""
        element = parent.find(name)
        if element is None:
            self._fail(f"expected <{name}> in <{parent.tag}>, got none", parent)
            return None
        try:
            return round(float(element.text or ""))
        except (ValueError, OverflowError):
            self._fail(f"expected a number in <{name}>, got {element.text!r}", element)
            return None

    def _box(self, element: etree._Element, width: int, height: int) -> Box | None:
        """Return the box clipped to the photo, None where it is not usable."""
        bndbox = element.find("bndbox")
        if bndbox is None:
            self._fail("expected <bndbox> in <object>, got none", element)
            return None
        values = [self._number(bndbox, name) for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in values:
            return None
        box: Box = tuple(values)  # type: ignore[assignment]
        if boxes.is_empty(box):
            self._fail(f"expected xmin < xmax and ymin < ymax, got the box {box}", bndbox)
            return None
        clipped = boxes.clip(box, width, height)
        if boxes.is_empty(clipped):
            self._fail(f"expected a box inside {width}x{height} pixels, got {box}", bndbox)
            return None
        self._num_clipped += clipped != box
        return clipped


class _Reader(_XmlReader):
    """Reads one annotation file and checks its photo and classes too."""

    def __init__(self, xml: Path, data_dir: Path, class_names: Sequence[str]):
        super().__init__(xml)
        self.names: Counter[str] = Counter()
        self.photo: Path | None = None
        self.annotation: Annotation | None = None
        self._class_names = class_names
        root = self.parse()
        if root is not None:
            self._read(root, data_dir / "images")

    def _read(self, root: etree._Element, images: Path) -> None:
        self.photo = self._photo(root, images)
        size = self._size(root)
        if self.photo is None or size is None or not self._check_photo(self.photo, size):
            self._count_names(root)
            return
        faces = [self._face(element, *size) for element in root.findall("object")]
        self.annotation = Annotation(
            xml=self.xml,
            photo=self.photo,
            width=size[0],
            height=size[1],
            faces=tuple(face for face in faces if face),
            num_clipped=self._num_clipped,
            num_invalid=faces.count(None),
        )

    def _count_names(self, root: etree._Element) -> None:
        names = (element.findtext("name") or "" for element in root.findall("object"))
        self.names.update(name.strip() for name in names if name.strip())

    def _photo(self, root: etree._Element, images: Path) -> Path | None:
        """Return the photo that the file names, if the name stays inside `images/`."""
        element = root.find("filename")
        name = _named_photo(root)
        if not name:
            self._fail("expected <filename> with the photo's name, got none", root)
            return None
        if name != PurePosixPath(name).name or name != PureWindowsPath(name).name:
            self._fail(f"expected <filename> inside images/, got {name!r}", element)
            return None
        photo = images / name
        if photo.suffix.lower() not in PHOTO_SUFFIXES:
            self._fail(f"expected a photo of {', '.join(PHOTO_SUFFIXES)}, got {name!r}", element)
            return None
        try:
            exists = photo.is_file()
        except OSError:  # The name is too long.
            exists = False
        if not exists:
            self._fail(f"expected the photo images/{name}, which does not exist", element)
            return None
        return photo

    def _check_photo(self, photo: Path, declared: tuple[int, int]) -> bool:
        """Decode the photo and compare its size."""
        try:
            size = _decoded_size(photo)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            self.problems.append(Problem(photo, None, f"expected a whole photo, got: {reason}"))
            return False
        if size != declared:
            expected, got = ("x".join(map(str, each)) for each in (declared, size))
            message = f"expected {expected} pixels as {self.xml.name} declares, got {got}"
            self.problems.append(Problem(photo, None, message))
        return size == declared

    def _face(self, element: etree._Element, width: int, height: int) -> Face | None:
        """Return the face of an `object` element, None where it is not usable."""
        label = (element.findtext("name") or "").strip()
        if not label:
            self._fail("expected <name> in <object>, got none", element)
            return None
        self.names[label] += 1
        box = self._box(element, width, height)
        if label not in self._class_names:
            expected = ", ".join(self._class_names)
            self._fail(f"expected a class of {expected}, got {label!r}", element)
            return None
        return Face(label, box) if box else None


def misread_kind(image: ImageFile.ImageFile) -> str | None:
    """Name kinds that TensorFlow decodes wrongly (a palette's numbers as grays) or not at all.

    Args:
        image: As `PIL.Image.open` gives it, not loaded yet.
    """
    if image.format == "BMP":
        if image.mode not in ("L", "RGB", "RGBA"):
            return "BMP with a palette"
        if not _has_usual_header(image):
            return (
                "BMP that is compressed, of 16 bits a pixel, with an old header, or with bytes "
                "after its pixels"
            )
    if image.format == "WEBP" and (image.mode == "RGBA" or getattr(image, "n_frames", 1) > 1):
        return "WebP with transparency or many frames"
    return None


def _has_usual_header(image: ImageFile.ImageFile) -> bool:
    """Tell whether a BMP begins as Windows 3 wrote it, or later ones, with 8, 24 or 32 bits.

    They are plain, or where masks say what is red, green and blue, in the usual order; and they
    end with their pixels.
    """
    assert image.fp is not None, "it is not loaded yet"
    image.fp.seek(0)
    header = image.fp.read(66)
    begin, size, bits, compression, *masks = (
        int.from_bytes(header[start:end], "little")
        for start, end in ((10, 14), (14, 18), (28, 30), (30, 34), (54, 58), (58, 62), (62, 66))
    )
    plain = compression == 0 or (compression == 3 and masks == [0xFF0000, 0xFF00, 0xFF])
    num_bytes = begin + (bits * image.width + 31) // 32 * 4 * image.height
    ends = image.fp.seek(0, os.SEEK_END) <= num_bytes
    return size >= 40 and bits in (8, 24, 32) and plain and ends


def _require_chunks(photo: Path) -> None:
    """Look at what of a PNG Pillow passes over and TensorFlow does not: its end, and checksums.

    Raises:
        ValueError: The last chunk is not there, or a chunk that decoders need is damaged.
    """
    with photo.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4]), head[4:]
            data, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                break
            is_needed = kind[:1].isupper()
            if is_needed and zlib.crc32(kind + data) != int.from_bytes(checksum):
                raise ValueError(f"a PNG whose chunk {kind.decode('latin-1')} is damaged")
            if kind == b"IEND":
                return
    raise ValueError("a PNG that is cut off at its end")


def _decoded_size(photo: Path) -> tuple[int, int]:
    """Decode a photo to the end and return its size, as TensorFlow's decoders will see it.

    TensorFlow ignores the EXIF orientation, so a turned photo would not fit its boxes.

    Raises:
        OSError, ValueError, SyntaxError: The photo is not whole, or not usable.
    """
    with Image.open(photo) as image:
        if image.format not in _FORMATS:
            raise ValueError(f"{image.format} under the name {photo.name}; store it as PNG or JPEG")
        if kind := misread_kind(image):
            raise ValueError(f"a {kind}; store it as PNG")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS}")
        image.load()
        if image.format == "PNG":
            _require_chunks(photo)
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    if orientation not in (0, 1):
        raise ValueError(
            f"an EXIF orientation of {orientation}: store the photo upright (for example with "
            "exiftran -a, or mogrify -auto-orient)"
        )
    return image.size
