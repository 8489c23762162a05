import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomsight.page import Image, Page

NASTY = '<script>alert("1")</script>'


def picture(extension: str = ".png") -> bytes:
    return bytes(cv2.imencode(extension, np.full((4, 6), 90, np.uint8))[1])


class Reader(HTMLParser):
    """Collects what a browser would see: tags, their attributes, and text; complains of wrong nesting."""

    EMPTY = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def fill(page: Page, text: str) -> None:
    """Put ``text`` wherever a text can go."""
    image = Image(picture(), caption=text, alt=text)
    page.heading(text)
    page.paragraph(text)
    page.note(text, kind="warning")
    page.figures([(text, text, text), (text, 3)])
    page.table([text, "n"], [[text, 1], [image, 2.5], [None, None]], caption=text)
    page.picture(image)
    page.grid([image, image])
    page.line_chart({text: ([0, 1, 2], [3.0, 2.0, 1.0])}, x_label=text, y_label=text, caption=text)
    page.histogram({text: [0.1, 0.2, 0.9]}, x_label=text, y_label=text, threshold=0.5, caption=text)


@given(
    text=st.one_of(
        st.text(min_size=1, max_size=40), st.just(NASTY), st.just('"><img src=x onerror=alert(1)>')
    )
)
def test_no_text_becomes_a_tag(text: str) -> None:
    empty, page = Page("report"), Page(text, subtitle=text)
    fill(empty, "a")
    fill(page, text)
    plain, shown = Reader(empty.html()), Reader(page.html())
    assert [tag for tag in shown.tags if tag != "p"] == [tag for tag in plain.tags if tag != "p"]
    assert not any(name.startswith("on") for name, _ in shown.attributes)
    page.html().encode("utf-8")


def test_text_is_shown_as_it_was_given() -> None:
    page = Page("Rolls & rolls", subtitle=NASTY)
    page.paragraph("斜纹布 < 3 px")
    text = Reader(page.html()).text
    assert "Rolls & rolls" in text
    assert NASTY in text
    assert "斜纹布 < 3 px" in text


def test_a_page_needs_nothing_from_outside() -> None:
    page = Page("report")
    fill(page, "a")
    sources = [value or "" for name, value in Reader(page.html()).attributes if name in ("src", "href")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page.html()
    assert "default-src 'none'" in page.html()


def test_png_and_jpeg_are_taken_and_other_bytes_refused() -> None:
    page = Page("report")
    page.picture(Image(picture(".jpg"), alt="cloth"))
    assert 'alt="cloth" src="data:image/jpeg;base64,/9j/' in page.html()
    with pytest.raises(ValueError, match="must be the bytes of a PNG or JPEG file"):
        Image(b"GIF89a")


def test_numbers_of_a_column_line_up() -> None:
    page = Page("report")
    page.table(
        ["place, m", "score", "type"],
        [[1234.5, 0.9, "slub"], [12.5, np.float32(0.91), "hole"], [None, 1, ""]],
    )
    cells = re.findall(r'<td( class="n")?>(.*?)</td>', page.html())
    numbers = [text for mark, text in cells if mark]
    assert numbers == ["1\u202f234.5", "0.90", "12.5", "0.91", "–", "1.00"]
    assert [text for mark, text in cells if not mark] == ["slub", "hole", ""]


def test_a_row_that_does_not_fit_its_head_is_refused() -> None:
    with pytest.raises(ValueError, match="a row must have 2 cells like its head, got 1"):
        Page("report").table(["a", "b"], [["only one"]])


def test_a_curve_falls_on_paper_when_it_falls_and_breaks_at_nan() -> None:
    page = Page("report")
    page.line_chart({"loss": ([0, 1, 2, 3], [4.0, float("nan"), 2.0, 1.0])}, x_label="step", y_label="loss")
    path = re.search(r'<path d="(M[^"]*)" fill="none"', page.html())
    assert path is not None
    assert path[1].count("M") == 2
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path[1])]
    assert ys == sorted(ys)  # an SVG's y grows downwards
    assert len(ys) == 3


def test_the_threshold_stands_at_its_place_among_the_scores() -> None:
    page = Page("report")
    page.histogram({"good": [0.0, 0.1], "defect": [0.9, 1.0]}, x_label="score", y_label="n", threshold=0.5)
    mark = re.search(r'class="mark" d="M([\d.]+) ', page.html())
    ends = re.findall(r'class="axis" d="M(\d+) [\d.]+H(\d+)', page.html())
    assert mark is not None
    assert float(mark[1]) == pytest.approx((float(ends[0][0]) + float(ends[0][1])) / 2)
    assert "threshold 0.5" in page.html()


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=20), log=st.booleans()
)
def test_any_numbers_can_be_drawn(values: list[float], log: bool) -> None:
    page = Page("report")
    page.histogram({"a": values}, x_label="x", y_label="n", log=log)
    page.line_chart({"a": (range(len(values)), values)}, x_label="x", y_label="y")
    page.figures([("value", value) for value in values])
    page.table(["v"], [[value] for value in values])
    assert not re.search(r"\b(nan|inf)\b", page.html().split("</style>")[1])
    Reader(page.html())


def test_nothing_to_draw_is_said_in_the_page_s_language() -> None:
    page = Page("报告", lang="zh")
    page.line_chart({}, x_label="步数", y_label="损失")
    page.histogram({"良品": []}, x_label="得分", y_label="张", threshold=0.5)
    page.table(["图片"], [])
    assert page.html().count("无数据") == 3
    assert '<html lang="zh-Hans">' in page.html()


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    page = Page("report \udcff")
    page.write(tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.endswith("</html>\n")
    assert "<title>report \\udcff</title>" in text
