"""Keys of files, parsed one by one and together."""

from __future__ import annotations

import json
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from obskit_gunicorn._scrape.families import Parser, parse_key

texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["le", '"le": "1.0"', 'a"le', "\\", '\\"le": "', "le\n", "__x", "", "\ud800"]),
)
bounds = st.one_of(texts, st.sampled_from(["1.0", "+Inf", "-Inf", "NaN", "nan", "1e3", "0x1", "_"]))


def stored(text: str) -> bytes:
    """Return a key as it is stored, with length and padding."""
    data = text.encode(errors="surrogatepass")
    return struct.pack("i", len(data)) + data + b" " * (8 - (len(data) + 4) % 8)


@given(
    metric=texts,
    sample=texts,
    labels=st.dictionaries(texts, texts, max_size=3),
    bounds=st.lists(bounds, min_size=1, max_size=4),
    help_text=texts,
    compact=st.booleans(),
)
@example(
    metric="h",
    sample="h_bucket",
    labels={},
    bounds=["1.0", "+Inf", "NaN", "x"],
    help_text='"le": "2.0"',
    compact=False,
)
@example(
    metric="h",
    sample="h_bucket",
    labels={'a"le': "1.0", "z": "1"},
    bounds=["1.0", "2.0"],
    help_text="",
    compact=False,
)
def test_buckets_are_parsed_as_one_by_one(
    metric: str,
    sample: str,
    labels: dict[str, str],
    bounds: list[str],
    help_text: str,
    *,
    compact: bool,
) -> None:
    """What one parser makes of the buckets of a child is what each is by itself."""
    parser = Parser()
    separators = (",", ":") if compact else None
    for bound in bounds:
        content = [metric, sample, {**labels, "le": bound}, help_text]
        for text in (
            json.dumps(content, sort_keys=True, separators=separators),
            json.dumps(content, ensure_ascii=False),
            json.dumps(content)[:-3],
        ):
            for prefix in ("histogram", "counter"):
                key = stored(text)
                assert parser.parse(key, prefix) == parse_key(key, prefix)
