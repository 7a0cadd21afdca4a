from hypothesis import given, settings
from hypothesis import strategies as st

from meritorder_sim.engine import Engine, Job
from meritorder_sim.profiles import built_in

L40S = built_in("llama-3.1-8b/l40s")
H100 = built_in("llama-3.1-8b/h100")


def drain(engine: Engine) -> list[Job]:
    """Run until nothing is left and return the finished jobs in order."""
    finished: list[Job] = []
    while (at := engine.next_change_at()) is not None:
        finished += engine.advance(at).finished
    return finished


def tpot(job: Job) -> float:
    assert job.finished_at is not None
    assert job.first_token_at is not None
    return (job.finished_at - job.first_token_at) / (job.output_tokens - 1)


def test_one_request_alone_gets_the_profiles_speed() -> None:
    for profile, expected_ms in ((L40S, 22.4), (H100, 6.4)):
        engine = Engine(profile, max_batch=256, now=10.0)
        job = engine.submit(10.0, prompt_tokens=1000, output_tokens=200)
        assert drain(engine) == [job]
        assert abs(tpot(job) * 1000 - expected_ms) < 0.05
        assert job.first_token_at is not None
        assert abs(job.first_token_at - 10.0 - profile.prefill_ms(1, 1000) / 1000) < 1e-9


def test_more_running_requests_make_each_slower() -> None:
    speeds = []
    for batch in (1, 4, 16, 64, 256):
        engine = Engine(L40S, max_batch=256, now=0.0)
        for _ in range(batch):
            engine.submit(0.0, prompt_tokens=500, output_tokens=100)
        speeds.append(max(tpot(job) for job in drain(engine)))
    assert speeds == sorted(speeds)
    assert speeds[-1] > 2 * speeds[0]


def test_tokens_are_counted_exactly_while_running() -> None:
    engine = Engine(L40S, max_batch=8, now=0.0)
    job = engine.submit(0.0, prompt_tokens=1000, output_tokens=50)
    first_at = L40S.prefill_ms(1, 1000) / 1000
    token = L40S.tpot_ms(1, 1000) / 1000
    engine.advance(first_at - 1e-6)
    assert engine.tokens(job) == 0
    engine.advance(first_at + 1e-6)
    assert engine.tokens(job) == 1
    engine.advance(first_at + 10.5 * token)
    assert engine.tokens(job) == 11
    engine.advance(first_at + 49 * token + 1e-6)
    assert engine.tokens(job) == 50
    assert engine.running == 0


def test_waiting_requests_start_in_order_of_arrival() -> None:
    engine = Engine(H100, max_batch=2, now=0.0)
    jobs = [engine.submit(0.0, prompt_tokens=100, output_tokens=10) for _ in range(6)]
    assert (engine.running, engine.waiting) == (2, 4)
    assert drain(engine) == jobs
    assert all(job.admitted_at is not None for job in jobs)
    admitted = [job.admitted_at or 0.0 for job in jobs]
    assert admitted == sorted(admitted)
    assert admitted[2] > 0.0


def test_a_cancelled_request_frees_its_slot_at_once() -> None:
    engine = Engine(H100, max_batch=1, now=0.0)
    running = engine.submit(0.0, prompt_tokens=100, output_tokens=1000)
    skipped = engine.submit(0.0, prompt_tokens=100, output_tokens=10)
    last = engine.submit(0.0, prompt_tokens=100, output_tokens=10)
    engine.cancel(0.0, skipped)
    engine.cancel(0.5, running)
    seen = engine.tokens(running)
    assert 1 < seen < 1000
    assert last.admitted_at == 0.5
    assert drain(engine) == [last]
    assert engine.tokens(running) == seen
    assert (engine.running, engine.waiting) == (0, 0)


def test_a_slowdown_acts_on_what_runs_already() -> None:
    engine = Engine(L40S, max_batch=8, now=0.0)
    job = engine.submit(0.0, prompt_tokens=1000, output_tokens=101)
    first_at = L40S.prefill_ms(1, 1000) / 1000
    token = L40S.tpot_ms(1, 1000) / 1000
    engine.set_slowdown(first_at + 50 * token, 3.0)
    drain(engine)
    assert job.finished_at is not None
    assert abs(job.finished_at - (first_at + 50 * token + 50 * 3 * token)) < 1e-6


def test_a_paused_engine_makes_no_progress_and_goes_on_after() -> None:
    engine = Engine(L40S, max_batch=8, now=0.0)
    job = engine.submit(0.0, prompt_tokens=1000, output_tokens=101)
    undisturbed = (L40S.prefill_ms(1, 1000) + 100 * L40S.tpot_ms(1, 1000)) / 1000
    engine.pause(1.0)
    assert engine.next_change_at() is None
    before = engine.tokens(job)
    engine.advance(5.0)
    assert engine.tokens(job) == before
    engine.resume(8.0)
    drain(engine)
    assert job.finished_at is not None
    assert abs(job.finished_at - (undisturbed + 7.0)) < 1e-6


def test_an_embedding_ends_with_its_prefill() -> None:
    engine = Engine(H100, max_batch=8, now=0.0)
    job = engine.submit(0.0, prompt_tokens=100, output_tokens=0)
    assert drain(engine) == [job]
    assert job.finished_at == job.first_token_at
    assert engine.tokens(job) == 0


JOBS = st.lists(
    st.tuples(
        st.floats(min_value=0.0, max_value=2.0),
        st.integers(min_value=1, max_value=4000),
        st.integers(min_value=0, max_value=200),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(
    jobs=JOBS, max_batch=st.integers(min_value=1, max_value=8), step=st.floats(min_value=0.01, max_value=5.0)
)
def test_no_slot_stays_free_while_someone_waits_and_no_token_is_lost(
    jobs: list[tuple[float, int, int, bool]], max_batch: int, step: float
) -> None:
    engine = Engine(L40S, max_batch=max_batch, now=0.0)
    now, submitted, finished, cancelled = 0.0, [], 0, 0
    for gap, prompt, output, leaves in jobs:
        now += gap
        job = engine.submit(now, prompt_tokens=prompt, output_tokens=output)
        submitted.append(job)
        if leaves:
            engine.cancel(now, job)
        assert engine.running <= max_batch
        assert not (engine.waiting and engine.running < max_batch)
    while engine.running or engine.waiting:
        now += step
        progress = engine.advance(now)
        finished += len(progress.finished)
        assert not (engine.waiting and engine.running < max_batch)
    finished += len(engine.advance(now).finished)
    for job in submitted:
        if job.cancelled_at is not None:
            cancelled += 1
            continue
        assert job.finished_at is not None
        assert engine.tokens(job) == job.output_tokens
    assert cancelled + len([job for job in submitted if job.finished_at]) == len(submitted)


@settings(max_examples=40, deadline=None)
@given(jobs=JOBS, step=st.floats(min_value=0.005, max_value=3.0))
def test_the_result_does_not_depend_on_how_often_it_is_asked(
    jobs: list[tuple[float, int, int, bool]], step: float
) -> None:
    def finish_times(polled: bool) -> list[float]:
        engine = Engine(H100, max_batch=4, now=0.0)
        now, submitted = 0.0, []
        for gap, prompt, output, _ in jobs:
            until = now + gap
            while polled and now + step < until:
                now += step
                engine.advance(now)
            now = until
            submitted.append(engine.submit(now, prompt_tokens=prompt, output_tokens=output))
        drain(engine)
        return [job.finished_at or 0.0 for job in submitted]

    for one, other in zip(finish_times(True), finish_times(False), strict=True):
        assert abs(one - other) < 1e-6
