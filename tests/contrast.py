"""How well the text of a page in a browser stands out from what is behind it, by WCAG 2's formula."""

from typing import Any

LEAST = 4.5
"""WCAG 2, level AA, for text of ordinary size."""
MEASURE = """() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, alpha = 1], below) => [r, g, b].map((c, i) => c * alpha + below[i] * (1 - alpha));
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = element => {
    const below = element.parentElement ? behind(element.parentElement) : [255, 255, 255];
    return over(parse(getComputedStyle(element).backgroundColor), below);
  };
  const ratio = both => (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  const contrast = element => {
    const back = behind(element);
    return ratio([over(parse(getComputedStyle(element).color), back), back].map(luminance));
  };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (text && element.checkVisibility() && !element.closest("svg")) found.push([contrast(element), text]);
  }
  for (const field of document.querySelectorAll("[placeholder]:not([placeholder=''], :disabled)")) {
    const { color, opacity } = getComputedStyle(field, "::placeholder"), back = behind(field);
    const [r, g, b, alpha = 1] = parse(color);
    const both = [over([r, g, b, alpha * opacity], back), back].map(luminance);
    if (field.checkVisibility()) found.push([ratio(both), field.placeholder]);
  }
  return found;
}"""


def faint_texts(page: Any) -> list[str]:
    """Texts that are visible on a Playwright page and stand out too little, each with its contrast."""
    measured = page.evaluate(MEASURE)
    assert measured, "the page shows no text"
    return [f"{contrast:.1f}: {text}" for contrast, text in measured if contrast < LEAST]


def contrast_of(color: list[int], behind: list[int]) -> float:
    """Contrast of two opaque colours, 0 to 255, by the same formula."""

    def luminance(rgb: list[int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (color, behind)))
    return (light + 0.05) / (dark + 0.05)
