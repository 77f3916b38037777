"""A container that is restarted. Only one that ran for the attempt period is, and AWS takes no period under 60 s."""

import pytest


def test_restarted_after_the_attempt_period(tasks, restarting_task):
    tasks.wait_for_line(restarting_task, "run 2", "again", timeout=90)
    tasks.stop(restarting_task)
    ended = tasks.ended(restarting_task)
    assert ended.logs["again"] == ["run 1", "run 2"]
    # The second run was too short to be followed by a third; the writable layer was the same.
    assert ended.containers["again"]["exitCode"] == 5
    assert ended.task["stopCode"] == "UserInitiated"


@pytest.mark.parametrize(("period", "word"), [(59, "60"), (1801, "1800")])
def test_attempt_period_of_the_api(tasks, period, word):
    policy = {"enabled": True, "restartAttemptPeriod": period}
    with pytest.raises(tasks.ecs.exceptions.ClientException, match=word):
        tasks.register(tasks.container("true", restartPolicy=policy))
