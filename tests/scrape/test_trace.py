"""What is kept of the steps of a fetch."""

from creatify_exporter import trace


def test_of_many_steps_the_first_and_the_last_are_kept() -> None:
    with trace.tracing("default", "lipsyncs") as steps:
        for page in range(150):
            trace.step("request", page=page)
        trace.step("commit")
    events = [step.facts.get("page", step.event) for step in steps]
    assert events == [*range(50), "some steps are left out", *range(102, 150), "commit"]
