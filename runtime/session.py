"""An engine's run: host tensors staged to the device, every shape checked, what repeats replayed as a CUDA graph."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from vlm_trt.bundle.entries import Profile
from vlm_trt.bundle.errors import IncompatibleError, VlmTrtError
from vlm_trt.runtime.backend import Binding
from vlm_trt.runtime.device_memory import DeviceMemory
from vlm_trt.runtime.gpu import Context, Plan
from vlm_trt.runtime.staging import Bound, Staging


class EngineSession:
    """One engine: a context per profile, over the same weights."""

    def __init__(self, memory: DeviceMemory, plan: Plan, profiles: Sequence[Profile], stream: int, name: str) -> None:
        """
        Args:
            memory: of the GPU.
            plan: the engine.
            profiles: what the manifest says it was built for.
            stream: its runs are put on this one.
            name: for messages.
        Raises:
            IncompatibleError: the engine has other inputs or profiles than the manifest says.
        """
        _require_profiles(plan, profiles, name)
        self._name, self._plan = name, plan
        self._aliases = dict(plan.aliases())
        self._phases = [
            Phase(memory, plan.open(index, stream), profile, stream) for index, profile in enumerate(profiles)
        ]

    def time_layers(self, report: Callable[[str, str, float], None]) -> None:
        """Tells profile, name and milliseconds of each layer of every run from now on; nothing is captured any more."""
        for phase in self._phases:
            phase.time_layers(partial(report, phase.name))

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        for output, source in self._aliases.items():
            if outputs[output].address != inputs[source].address:
                raise VlmTrtError(f"{self._name} updates {source} in place, so {output} must be bound to its memory")
        phase = next((phase for phase in self._phases if phase.refusal(inputs) is None), None)
        if phase is None:
            refusals = "; ".join(f"{phase.name}: {phase.refusal(inputs)}" for phase in self._phases)
            raise IncompatibleError(
                f"{self._name} was not built for this ({refusals}); build engines with larger limits: vlm-trt build"
            )
        try:
            phase.run(inputs, outputs, repeats=repeats)
        except VlmTrtError as error:
            phase.reset()
            raise type(error)(f"{self._name}, {phase.name}: {error}") from error


def _require_profiles(plan: Plan, profiles: Sequence[Profile], name: str) -> None:
    if plan.profile_count != len(profiles):
        raise IncompatibleError(
            f"{name} has {plan.profile_count} profiles and the manifest lists {len(profiles)}; build it again with: "
            "vlm-trt build"
        )
    for index, profile in enumerate(profiles):
        if alien := set(plan.inputs) ^ set(profile.shapes):
            raise IncompatibleError(
                f"{name} and the manifest differ in the inputs {', '.join(sorted(alien))}; build it again with: "
                "vlm-trt build"
            )
        for tensor in plan.inputs:
            found, listed = plan.shapes(tensor, index), tuple(profile.corner(tensor, which) for which in range(3))
            if found != listed:
                raise IncompatibleError(
                    f"{name} takes {tensor} in the shapes {found} in its profile {profile.name} and the manifest says "
                    f"{listed}; build it again with: vlm-trt build"
                )


class Phase:
    """One profile of an engine, with its context, its staging memory and the graph of what it does again and again.

    Of runs that repeat, one that is like the one before, in every shape and address, is captured; a third launches the
    graph. Whatever differs drops the graph, since it holds the addresses that it was captured with. What cannot be
    captured runs uncaptured, from then on.
    """

    def __init__(self, memory: DeviceMemory, context: Context, profile: Profile, stream: int) -> None:
        self.name = profile.name
        self._gpu, self._context, self._stream = memory.gpu, context, stream
        self._profile = profile
        self._staging = Staging(memory, stream, {name: profile.corner(name, 2) for name in profile.shapes})
        self._inputs: dict[str, Bound] = {}
        self._outputs: dict[str, Bound] = {}
        self._graph: int | None = None
        self._timed = False
        self.captures = 0
        self.refused: VlmTrtError | None = None  # why nothing is captured any more

    def time_layers(self, report: Callable[[str, float], None]) -> None:
        """Tells the milliseconds of each layer of every run from now on."""
        self.reset()
        self._timed = True
        self._context.time_layers(report)

    def refusal(self, inputs: Mapping[str, Binding]) -> str | None:
        """Which input lies outside the profile, and what it takes; None where all lie in it."""
        for name, ranges in self._profile.shapes.items():
            shape = inputs[name].shape
            if len(shape) != len(ranges) or any(
                not low <= extent <= high for extent, (low, _, high) in zip(shape, ranges, strict=True)
            ):
                allowed = ", ".join(str(low) if low == high else f"{low}…{high}" for low, _, high in ranges)
                return f"{name} has the shape {list(shape)} and may have [{allowed}]"
        return None

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        """One run on bound memory, done when this returns."""
        again = self._bind(inputs, outputs)
        self._staging.take(inputs)
        if again and repeats and not self._timed:
            self._capture()
        if self._graph is None:
            self._work()
        else:
            self._gpu.launch(self._graph, self._stream)
        self._gpu.synchronize(self._stream)
        self._staging.give(outputs)

    def reset(self) -> None:
        """After a failure: nothing that was bound counts."""
        self._inputs, self._outputs = {}, {}
        self._drop_graph()

    def _capture(self) -> None:
        """The graph of this run, if there is none yet and it can be captured."""
        if self._graph is not None or self.refused is not None or not self._context.can_capture(self._stream):
            return
        try:
            self._graph = self._gpu.capture(self._stream, self._work)
            self.captures += 1
        except VlmTrtError as error:  # of a GPU that failed: the run itself will tell
            self.refused = error

    def _work(self) -> None:
        """All of one run, put on the stream."""
        self._staging.copy_in(self._inputs)
        self._context.enqueue(self._stream)
        self._staging.copy_out(self._outputs)

    def _bind(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> bool:
        """Tells the context what changed; whether nothing did."""
        new_inputs = {name: self._staging.place(name, inputs[name]) for name in self._profile.shapes}
        new_outputs = {name: self._staging.place(name, binding) for name, binding in outputs.items()}
        if (new_inputs, new_outputs) == (self._inputs, self._outputs):
            return True
        self._drop_graph()
        old = {**self._inputs, **self._outputs}
        for name, bound in (*new_inputs.items(), *new_outputs.items()):
            before = old.get(name)
            if name in new_inputs and (before is None or before.shape != bound.shape):
                self._context.set_shape(name, bound.shape)
            if before is None or before.address != bound.address:
                self._context.set_address(name, bound.address)
        self._inputs, self._outputs = new_inputs, new_outputs
        return False

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            with suppress(VlmTrtError):  # of a GPU that failed; what failed is already on its way to the user
                self._gpu.discard(graph)
