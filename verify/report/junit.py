"""The report as JUnit XML: an artifact is a suite, a check a test case.

JUnit knows passed, failed, error and skipped. Not enough evidence is an error here, never skipped:
continuous integration shows skipped tests as green. Text is made visible first, since XML 1.0 has
no way to write most control characters at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from verify.check import Outcome, State
from verify.report.contents import ArtifactReport
from verify.report.shown import visible

_ELEMENTS = {State.FAIL: "failure", State.NOT_ENOUGH_EVIDENCE: "error"}


def render_junit(name: str, artifacts: Sequence[ArtifactReport]) -> str:
    """The whole file; `name` is the tool's and the verb's."""
    root = ET.Element("testsuites", name=visible(name))
    for artifact in artifacts:
        root.append(_suite(artifact))
    for key in ("tests", "failures", "errors"):
        root.set(key, str(sum(int(suite.attrib[key]) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(artifact: ArtifactReport) -> ET.Element:
    states = [outcome.verdict.state for outcome in artifact.outcomes]
    suite = ET.Element(
        "testsuite",
        name=visible(artifact.name),
        tests=str(len(states)),
        failures=str(states.count(State.FAIL)),
        errors=str(states.count(State.NOT_ENOUGH_EVIDENCE)),
        time=f"{artifact.seconds:.3f}",
    )
    for outcome in artifact.outcomes:
        suite.append(_case(artifact.name, outcome))
    return suite


def _case(artifact: str, outcome: Outcome) -> ET.Element:
    case = ET.Element("testcase", classname=visible(artifact), name=visible(outcome.check))
    element = _ELEMENTS.get(outcome.verdict.state)
    if element is None:
        return case
    what = ET.SubElement(case, element, message=visible(outcome.verdict.reason))
    what.text = "\n".join(visible(f"{f.subject}: {f.message}") for f in outcome.findings)
    return case
