"""What the bench measures can be measured; how long it takes is no matter here."""

from pathlib import Path

import pytest
from conftest import options

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_loss_of_logits_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import losses

    monkeypatch.setattr(losses, "MEMBERS", 2)
    rows = list(losses.against_kd(1))
    named = {what.rpartition("loss=")[2] for what, *_ in rows}
    of_features = {"at", "crd", "fitnets", "pkt", "rkd", "sp"}
    assert named == {*options("loss")} - of_features - {"kd", "sum"}
    assert all(ratio.endswith("x") for *_, ratio, _ in rows)
