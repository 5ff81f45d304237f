"""What `enginehouse bench --plot` draws: every candidate's speed against its quality and memory, as SVG."""

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT, MARGIN = 760, 440, 70
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}line{stroke:#bbb}circle{fill:#9bb3c9;fill-opacity:.6;stroke:#47637d}"
    "circle.front{fill:#e08a3c;stroke:#8a4a10}.title{font-size:15px}"
    "@media(prefers-color-scheme:dark){svg{background:#1b1d20}text{fill:#ddd}line{stroke:#555}}"
)


class Point(msgspec.Struct, frozen=True):
    name: str
    speed: float  # tokens per second, alone
    divergence: float  # from the source; 0 for the source itself
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name}: {self.speed:.1f} tokens/s, KL {self.divergence:.4f}, {self.memory_bytes >> 20} MiB"


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in speed, quality and memory together."""
    return [point for point in points if not any(beats(other, point) for other in points)]


def beats(one: Point, other: Point) -> bool:
    better = one.speed >= other.speed, one.divergence <= other.divergence, one.memory_bytes <= other.memory_bytes
    same = (one.speed, one.divergence, one.memory_bytes) == (other.speed, other.divergence, other.memory_bytes)
    return all(better) and not same


def draw(title: str, points: Sequence[Point]) -> str:
    """Speed to the right, quality upwards (of divergences the logarithm), memory as the area of the point; the Pareto
    front is marked, and named beneath."""
    floor = min((point.divergence for point in points if point.divergence > 0), default=1e-4) / 2
    depth = [math.log10(max(point.divergence, floor)) for point in points]
    right = max(point.speed for point in points) * 1.15
    low, high = min(depth) - 0.2, max(depth) + 0.2
    most = max(point.memory_bytes for point in points) or 1
    best = front(points)

    def x(speed: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * speed / right

    def y(divergence: float) -> float:
        return MARGIN + (HEIGHT - 2 * MARGIN) * (divergence - low) / (high - low)

    bottom = HEIGHT - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 18 * len(best)}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        text(MARGIN, 28, title, "title"),
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{WIDTH - MARGIN}" y2="{bottom}"/>',
        f'<line x1="{MARGIN}" y1="{MARGIN}" x2="{MARGIN}" y2="{bottom}"/>',
        text(WIDTH - MARGIN, bottom + 34, "tokens/s, alone", anchor="end"),
        text(MARGIN, MARGIN - 14, "nearer to the source (KL); a larger point takes more memory"),
    ]
    parts += [text(x(right * step / 4), bottom + 16, f"{right * step / 4:.0f}", anchor="middle") for step in range(5)]
    for point, place in zip(points, depth, strict=True):
        radius = 5 + 15 * math.sqrt(point.memory_bytes / most)
        kind = ' class="front"' if point in best else ""
        parts.append(
            f'<circle{kind} cx="{x(point.speed):.1f}" cy="{y(place):.1f}" r="{radius:.1f}">'
            f"<title>{escape(str(point))}</title></circle>"
        )
        parts.append(text(x(point.speed), y(place) - radius - 3, point.name, anchor="middle"))
    ranked = sorted(best, key=lambda point: -point.speed)
    parts += [text(MARGIN, HEIGHT + 18 * line, str(point)) for line, point in enumerate(ranked)]
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(said)}</text>'
