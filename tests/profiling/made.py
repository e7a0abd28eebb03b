"""Made measurements with times that are known."""

from vlm_trt.profiling.measure import Iteration, Measured, RequestTimes
from vlm_trt.profiling.workload import Workload
from vlm_trt.runtime.timing import Span


def iteration(step_ms: float, prefill_ms: float = 50, steps: int = 4, requests: int = 1) -> Iteration:
    """Requests prefilled one after the other, then decoded together in steps of one duration."""
    prefills = [Span("prefill", at * prefill_ms / 1000, prefill_ms / 1000) for at in range(requests)]
    begin = requests * prefill_ms / 1000
    shared = [Span("decode_step", begin + at * step_ms / 1000, step_ms / 1000) for at in range(steps)]
    times = tuple(
        RequestTimes(
            tokens=(prefill.start + prefill.seconds, *(span.start + span.seconds for span in shared)),
            spans=(prefill, *shared),
            prompt_tokens=100,
            images=1,
            ids=tuple(range(steps + 1)),
        )
        for prefill in prefills
    )
    return Iteration(begin + steps * step_ms / 1000, times)


def measured(*steps_ms: float, requests: int = 1) -> Measured:
    workload = Workload(images=1, prompt_tokens=100, new_tokens=5, batch=requests)
    return Measured(workload, tuple(iteration(one, requests=requests) for one in steps_ms), warmup_ms=(99.0,))
