"""Finding the entries of a label set in the bytes of a file."""

from __future__ import annotations

import random

from obskit_gunicorn._store.baselines import Baseline, File, _entries
from obskit_gunicorn._store.fileformat import HEADER_BYTES, LabelSet, encode_key, pack_entry

PIECES = ('"', "\\", *"{}[]", ", ", ":", "le", "a", '"le": "1"', '["m", ', "ü", "\n", "m")


def test_found_by_bytes() -> None:
    """Each label set is found, and no other one, whatever its labels look like."""
    rng = random.Random(5)

    def word() -> str:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(5)))

    for _ in range(80):
        names = rng.sample(["a", "k", "le_", "lf", "z"], rng.randrange(1, 4))
        content = bytearray(HEADER_BYTES)
        truth: dict[LabelSet, list[int]] = {}
        for values in dict.fromkeys(tuple(word() for _ in names) for _ in range(8)):
            for metric in ("m", "m2"):
                for bound in ((), ("1.0",), ("+Inf",)):
                    sample = f"{metric}_bucket" if bound else f"{metric}_sum"
                    all_names = [*names, "le"] if bound else names
                    key = encode_key(metric, sample, all_names, [*values, *bound], word())
                    content += pack_entry(key, 1.0, 0.0)
                    series = LabelSet.named(metric, names, values)
                    assert LabelSet.of(key, "histogram") == series
                    if metric == "m":
                        truth.setdefault(series, []).append(len(content) - 16)
        data = bytes(content)
        found = _entries(data, "histogram", "m", None)
        assert {series: [each.place for each in found[series]] for series in found} == truth
        for series in truth:
            assert _entries(data, "histogram", "m", {series}) == {series: found[series]}
        assert _entries(data, "histogram", "m", truth.keys()) == found


def test_keys_of_other_writers() -> None:
    """Spaces and the order of labels make no other label set; what is no key is none."""
    key = b'["m","m_total",{"b":"2","a":"1"},"help"]'
    assert LabelSet.of(key, "counter") == LabelSet.named("m", ["a", "b"], ["1", "2"])
    assert LabelSet.of(b'["m", "m_total", {"a": 1}, "help"]', "counter") is None
    assert LabelSet.of(b"[1, 2]", "counter") is None
    assert LabelSet.of(b"\xff", "counter") is None


def test_records_of_other_releases() -> None:
    """A record that this release does not understand is nothing."""
    baseline = Baseline(
        "hidden", 1.5, File("counter_slot0.db", "abcd"), LabelSet.named("m", ["a"], ["1"]), ()
    )
    assert Baseline.unpacked(baseline.packed()) == baseline
    for wrong in (b"", b"{}", b"[1]", b"\xff\0", baseline.packed() + b"half", b'["a"]\0'):
        assert Baseline.unpacked(wrong) is None
