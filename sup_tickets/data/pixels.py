"""From a file of an image to its pixels: RGB, 8 bits, upright; or one clear line.

What every kind of file becomes, for sets in memory and photographs alike:

- Grey, of 1, 8 or 16 bits, is repeated over the channels. White is white: 16 bits are
  scaled by 255 / 65535 and rounded, not cut off at 255.
- Palettes, CMYK, YCbCr: converted by Pillow; so are colours of 16 bits, of which it
  takes the upper 8.
- What is transparent (by an alpha channel, or by a palette or colour that is marked so)
  shows white, as on a page; the colours that such files hide are arbitrary.
- The orientation that a camera noted (EXIF) is applied.
- Of several frames or pages the first is taken.
- Refused: pixels of floating point or 32 bits, whose white nobody knows, and colour
  spaces that Pillow cannot convert; files that are empty, truncated or no images.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sup_tickets.data.files import require

_ORIENTATION = 0x0112  # the EXIF tag
_WHITE_16 = 65535
# Pillow reads 16 bits of these as 32-bit integers; of other forms "I" may be anything.
_FORMS_OF_16_BITS = {"PNG", "PPM"}


def open_image(source: Path | bytes, *, name: str = "given as bytes") -> Any:
    """An image as the module says.

    Args:
      source: path of a file, or its bytes.
      name: what to call bytes in an error; a file goes by its path.

    Returns:
      A `PIL.Image.Image` of mode "RGB", loaded.

    Raises:
      ValueError: naming the file, if it cannot be read or converted.
      ModuleNotFoundError: without Pillow.
    """
    image = require("PIL.Image", "to decode images")
    with reading(source if isinstance(source, Path) else name):
        data = source.read_bytes() if isinstance(source, Path) else source
        if not data:
            raise ValueError("it is empty")
        with image.open(io.BytesIO(data)) as opened:
            opened.load()
            return _upright(_coloured(opened), _orientation(opened))


@contextlib.contextmanager
def reading(name: Path | str) -> Iterator[None]:
    """Makes one line, with the name of the image, of whatever is wrong with it.

    Raises:
      ValueError: with that line.
    """
    try:
        yield
    except Exception as error:  # Pillow's plugins raise a dozen kinds for broken files
        raise ValueError(f"cannot read the image {name}: {_in_words(error)}") from error


def _orientation(opened: Any) -> int:
    try:
        return opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # the notes of the camera are broken, its pixels are not
        return 1


def _upright(photo: Any, orientation: int) -> Any:
    turn = require("PIL.Image", "to decode images").Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return photo.transpose(turns[orientation]) if orientation in turns else photo


def _coloured(opened: Any) -> Any:
    image = require("PIL.Image", "to decode images")
    if opened.mode.startswith("I;16") or (
        opened.mode == "I" and opened.format in _FORMS_OF_16_BITS
    ):
        wide = np.asarray(opened).astype(np.uint32)
        grey = (wide * 255 + _WHITE_16 // 2) // _WHITE_16
        grey[wide == opened.info.get("transparency", -1)] = 255
        return image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if opened.mode in ("I", "F"):
        kind = "32-bit integers" if opened.mode == "I" else "floating point"
        raise ValueError(f"its pixels are {kind}, and no one knows what white is")
    if "transparency" in opened.info or opened.mode in ("LA", "La", "PA", "RGBa"):
        opened = opened.convert("RGBA")
    if opened.mode == "RGBA":
        page = image.new("RGBA", opened.size, "white")
        opened = image.alpha_composite(page, opened)
    return opened.convert("RGB")


def _in_words(error: Exception) -> str:
    image = require("PIL", "to decode images")
    if isinstance(error, image.UnidentifiedImageError):  # its text names a buffer
        return "it is no image, or of no form that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
