"""What holds of every assertion about a run, checked wherever one is tried."""

import json
import re

import pytest

from pytest_induction.errors import ArgumentError, ExpectationFailed
from pytest_induction.observers import collecting
from pytest_induction.records import Evidence


def evidence_of(claim, *arguments, **options):
    """The evidence, whichever way it goes; where it fails, what is said holds together."""
    text = None
    with collecting() as heard:
        try:
            evidence = claim(*arguments, **options)
        except ExpectationFailed as failure:
            evidence, text = failure.evidence, str(failure)
    if text is not None:
        _check_text(text, evidence)
    assert heard == [evidence]  # told once, pass or fail
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    return evidence


def _check_text(text, evidence):
    """Verdict and claim first, then what was seen and where, then what to do; and no number that is none."""
    lines = text.splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith(f"{evidence.claim} is {evidence.verdict}, expected ")
    assert evidence.summary in " ".join(text.split())  # long lines go on in the next
    assert lines[-2].startswith("  measured: ")
    assert lines[-1].startswith("  next: ")
    assert lines[-1] != "  next: see docs/runs.md", evidence.reason  # every reason has a text of its own
    assert not re.search(r"\bnan\b|Estimate\(", text)


def refusal(claim, *arguments, kind=ArgumentError, **options):
    with pytest.raises(kind) as caught:
        claim(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
