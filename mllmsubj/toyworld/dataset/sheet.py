"""Contact sheet of examples: reference, prompt and target."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mllmsubj.toyworld.dataset.examples import Example
from mllmsubj.toyworld.prompts.prompt import Prompt

PAPER, INK, GREY, ACCENT = (250, 247, 240), (44, 34, 50), (128, 120, 128), (176, 70, 40)
COLUMNS = 2
MARGIN = 12


def sheet(examples: Sequence[Example], size: int) -> Image.Image:
    """Returns a page with two columns of examples; `size`: side of a picture in pixels, at least 64."""
    words = max(160, round(1.4 * size))
    cell = (2 * size + words + 3 * MARGIN, size + MARGIN)
    columns = min(COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    page = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    for i, shown in enumerate(examples):
        x, y = MARGIN + (i % columns) * cell[0], MARGIN + (i // columns) * cell[1]
        page.paste(Image.fromarray(shown.reference.render(size)), (x, y))
        _words(draw, shown.prompt, x + size + MARGIN, y, words, size)
        page.paste(Image.fromarray(shown.target.render(size)), (x + size + words + 2 * MARGIN, y))
    return page


def _words(draw: ImageDraw.ImageDraw, prompt: Prompt, x: int, y: int, width: int, height: int) -> None:
    """Draws the prompt and, under it, its requested attributes and kind, in the largest font size that fits."""
    asks = ", ".join(f"{name}={value}" for name, value in prompt.asks)
    kind = f"{prompt.kind}, reasoning" if prompt.reasoning else prompt.kind
    for letters in (20, 18, 16, 14, 12, 11, 10, 9, 8, 7):
        large, little = ImageFont.load_default(letters), ImageFont.load_default(max(7, letters * 0.72))
        blocks = [
            (_wrapped(text, font, width), font, colour)
            for text, font, colour in ((prompt.text, large, INK), (asks, little, ACCENT), (kind, little, GREY))
        ]
        boxes = [draw.multiline_textbbox((0, 0), text, font=font) for text, font, _ in blocks]
        if sum(box[3] + letters // 2 for box in boxes) <= height:
            break
    for (text, font, colour), box in zip(blocks, boxes, strict=True):
        draw.multiline_text((x, y), text, fill=colour, font=font)
        y += round(box[3]) + letters // 2


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
