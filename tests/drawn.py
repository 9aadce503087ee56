"""Charts as tests look at them."""

from xml.etree import ElementTree

from distill3d.view.charts import Chart, svg_file

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart) -> ElementTree.Element:
    """The file of a chart; also proves that it is well-formed and escaped."""
    return ElementTree.fromstring(svg_file(chart))


#: Units that a letter takes in a common font, on average, of its size in the style sheet.
LETTER = 6.3


def assert_apart(chart: Chart) -> None:
    """No text lies outside of the drawing or on another one."""
    boxes = []
    for text in drawn(Chart("", chart.marks, chart.width, chart.height)).iter(f"{SVG}text"):
        told = (text.text or "") + "".join(inner.tail or "" for inner in text)  # without tooltips
        x, y, width = float(text.get("x", "")), float(text.get("y", "")), LETTER * len(told.strip())
        if width:
            left = x - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor", "start")] * width
            boxes.append((left, y - 9, left + width, y))
    for n, (left, top, right, bottom) in enumerate(boxes):
        assert left >= -1 and right <= chart.width + 1 and top >= -1 and bottom <= chart.height, boxes[n]
        for other in boxes[n + 1 :]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1], (boxes[n], other)


#: A name that no room is made for.
LONG = "construction_vehicle with a trailer behind it"
