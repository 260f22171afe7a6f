"""Where the bytes of an artifact go."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LedgerRow:
    """Bytes of one group, or of the configuration, the code or the container (which have no tensors)."""

    name: str
    coded_bytes: int
    num_tensors: int = 0
    num_weights: int = 0
    encoding: str = ""
    codecs: str = ""
    entropy_bytes: float | None = None
    """Order-0 entropy of the symbols, where it was asked for and there are any: what a coder without contexts needs."""

    @property
    def bits_per_weight(self) -> float | None:
        """Coded bits per weight, scales and other side data included; None where there are no weights."""
        return 8 * self.coded_bytes / self.num_weights if self.num_weights else None


@dataclass(frozen=True)
class Ledger:
    """Rows that add up to every byte of the file."""

    rows: tuple[LedgerRow, ...]
    total_bytes: int
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if sum(row.coded_bytes for row in self.rows) != self.total_bytes:
            raise ValueError("rows do not add up to total_bytes")

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes left under the cap (negative: over it); None without a cap."""
        return None if self.max_bytes is None else self.max_bytes - self.total_bytes

    def format_table(self) -> str:
        """Fixed-width text table, one line per row and one for the total."""
        header = ("group", "tensors", "weights", "encoding", "codecs", "entropy", "bytes", "bits/weight", "share")
        lines = [header, *(self._cells(row) for row in self.rows)]
        lines.append(self._cells(LedgerRow("total", self.total_bytes, *self._totals())))
        if all(row.entropy_bytes is None for row in self.rows):
            lines = [line[:5] + line[6:] for line in lines]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text_columns = {0, 3, 4}
        rendered = [
            "  ".join(
                cell.ljust(width) if column in text_columns else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        if self.max_bytes is not None:
            rendered.append(f"cap {self.max_bytes:,} bytes, headroom {self.headroom_bytes:,} bytes")
        return "\n".join(rendered)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        rows = [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.rows]
        return {
            "rows": rows,
            "total_bytes": self.total_bytes,
            "max_bytes": self.max_bytes,
            "headroom_bytes": self.headroom_bytes,
        }

    def _totals(self) -> tuple[int, int]:
        return sum(row.num_tensors for row in self.rows), sum(row.num_weights for row in self.rows)

    def _cells(self, row: LedgerRow) -> tuple[str, ...]:
        bits = row.bits_per_weight
        return (
            row.name,
            f"{row.num_tensors:,}" if row.num_tensors else "",
            f"{row.num_weights:,}" if row.num_weights else "",
            row.encoding,
            row.codecs,
            "" if row.entropy_bytes is None else f"{row.entropy_bytes:,.0f}",
            f"{row.coded_bytes:,}",
            "" if bits is None else f"{bits:.3f}",
            f"{100 * row.coded_bytes / self.total_bytes:.2f}%",
        )
