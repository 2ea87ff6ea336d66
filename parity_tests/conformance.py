"""The comparison of an implementation with the oracle: generated cases for every function, one table row per dtype.

An implementation is an object with the functions of `prm.reference` (PORTING.md lists them): the fast path on a device,
by `torch_port.TorchPort`, or anyone's own.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, example, given, settings

import prm.reference
from prm import InputError
from prm.parity_tests.convert import to_reference
from prm.parity_tests.operators import NUMPY, OPERATORS, WALK, Case, cases, rounded
from prm.parity_tests.strategies import BLOCKS, Cnn, cnns
from prm.parity_tests.tolerances import NETWORK, as_array
from prm.parity_tests.torch_port import Recorder, TorchPort, runs_on
from prm.reference.network import forward

NETWORKS = "network.walk"
NAMES = (*OPERATORS, NETWORKS)
# Values of a max pooling that lie closer than this share of its largest are not compared: rounding may swap them.
NEAR = {"float64": 1e-12, "float32": 1e-5}
# Cases of a row on which it is seen which of torch's operators run.
WATCHED = 5


class Mismatch(AssertionError):
    """An answer that is not the oracle's. size: its error, as a share of the largest magnitude, where that is known."""

    def __init__(self, message, size=0.0):
        super().__init__(message)
        self.size = size


@dataclass(frozen=True)
class Row:
    """One line of the table: a function in a dtype.

    equation: "-" where the paper has none. ran: "kernel" where one is registered for the device, "torch code", or
    "arrays" for an object's functions. largest_error and tolerance: shares of an answer's largest magnitude. seconds:
    spent in the implementation alone. failure: what is wrong, and lines that repeat it.
    """

    operator: str
    equation: str
    dtype: str
    ran: str
    cases: int
    largest_error: float
    tolerance: float
    seconds: float
    failure: str | None = None

    @property
    def passed(self) -> bool:
        return self.failure is None


# ---- one case


def compare(case: Case | Cnn, implementation, dtype: str) -> float:
    """The largest error of the implementation's answer, relative to the largest magnitude of each array.

    Raises Mismatch, naming array, index and values, where it is larger than the tolerance or not exact.
    """
    return _largest_error(*answers(case, implementation, dtype), case, dtype)


def answers(case: Case | Cnn, implementation, dtype: str) -> tuple[dict, dict]:
    """The implementation's named arrays, and the oracle's."""
    return _answer(case, implementation, dtype), _expected(case, dtype)


def _expected(case, dtype):
    if isinstance(case, Cnn):
        return _walks(case, prm.reference, *activations_of(case, dtype))
    arguments = dict(case.arguments)
    if "threshold" in arguments and case.operator.startswith("peak_stimulation"):
        # Its rule of the mean asks for the dtype in which maps are compared: float32 for those of 16 bits too.
        arguments["M"] = arguments["M"].astype(np.float64 if dtype == "float64" else np.float32)
        arguments["threshold"] = rounded(arguments["threshold"], getattr(torch, dtype))
    return OPERATORS[case.operator].answer(prm.reference, arguments)


def _answer(case, implementation, dtype):
    if isinstance(case, Cnn):
        return answered_walks(case, implementation, dtype)
    arguments, kept = case.typed(dtype), case.typed(dtype)
    answer = OPERATORS[case.operator].answer(implementation, arguments)
    for name in kept:
        if not all(map(np.array_equal, _arrays(arguments[name]), _arrays(kept[name]))):
            raise Mismatch(f"the implementation wrote on its argument {name}")
    return answer


def _arrays(value):
    return value if isinstance(value, list) else [value]


def _largest_error(answers, expected, case, dtype):
    table = NETWORK if isinstance(case, Cnn) else OPERATORS[case.operator].tolerance
    largest = 0.0
    if answers.keys() != expected.keys():
        raise Mismatch(f"the answer is {sorted(answers)}, expected {sorted(expected)}")
    for name, wanted in expected.items():
        wanted, got = np.asarray(wanted), np.asarray(answers[name])
        if got.shape != wanted.shape:
            raise Mismatch(f"{name} has shape {got.shape}, expected {wanted.shape}: {_short(got)}, {_short(wanted)}")
        if got.dtype.kind not in "biuf":
            raise Mismatch(f"{name} is an array of {got.dtype}, not of numbers")
        exact = wanted.dtype.kind in "iub"
        got, wanted = as_array(got), as_array(wanted)
        # What an addition or a concatenation parts is one P, and is measured by the largest of all its parts.
        parts = [expected[part] for part in expected if part.startswith("P(U_")] or [wanted]
        scale = 1.0 if exact or name == "leaked" else max(np.abs(part).max(initial=0.0) for part in parts)
        if not np.isfinite(wanted).all():
            raise ValueError(f"the oracle's {name} is not finite for {case}")
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where(got == wanted, 0.0, np.nan_to_num(np.abs(got - wanted), nan=np.inf))
        allowed = 0.0 if exact else table[getattr(torch, dtype)] * scale
        if (error > allowed).any():
            index = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
            many = f"{np.count_nonzero(error > allowed)} of {error.size} values differ"
            bound = "" if exact else f" by more than {allowed:.2g}"
            if bound and scale not in (0.0, 1.0):
                bound += f", {allowed / scale:.2g} of the largest"
            raise Mismatch(
                f"{name}{list(index) if index else ''} is {float(got[index])}, expected {float(wanted[index])}; "
                f"{many}{bound}",
                float(error.max()) / (scale or 1.0),
            )
        largest = max(largest, float(error.max(initial=0.0)) / (scale or 1.0))
    return largest


def _short(array):
    return np.array2string(array, threshold=20, separator=", ").replace("\n", " ")


# ---- whole networks


@lru_cache(maxsize=1)
def activations_of(case, dtype):
    dtype = getattr(torch, dtype)
    network = to_reference(case.module(dtype))
    return network, [forward(network, image) for image in case.pictures(dtype).double().numpy()]


def answered_walks(case: Cnn, implementation, dtype: str) -> dict:
    """Maps (N, C, h, w), PRMs (K, H, W), leaked (K,) and empty (K,) of a case by an implementation, as named arrays."""
    images = case.pictures(getattr(torch, dtype)).numpy()
    if isinstance(implementation, TorchPort):
        module = case.module(implementation.dtype)
        with torch.no_grad():
            shape = module(torch.from_numpy(images)).shape
        answer = implementation.walk_module(module, images, case.positions(shape), case.upsample, case.signed)
        return dict(zip(("maps", "PRMs", "leaked", "empty"), answer))
    network = to_reference(case.module(getattr(torch, dtype)))
    return _walks(case, implementation, network, [implementation.network.forward(network, image) for image in images])


def _walks(case, implementation, network, activations):
    maps = np.stack([as_array(a[network.output]) for a in activations])
    found = [
        implementation.network.walk(network, activations[n], tuple(peak), upsample=case.upsample, signed=case.signed)
        for n, *peak in case.positions(maps.shape).tolist()
    ]
    prms, leaked = np.stack([w.prm for w in found]), np.array([float(w.leaked) for w in found])
    return {"maps": maps, "PRMs": prms, "leaked": leaked, "empty": np.array([bool(w.empty) for w in found])}


def has_near_choices(network, activations, gap):
    """Whether rounding could change what a walk chooses: the two largest of a max pooling's window closer than
    `gap`, a share of the layer's largest magnitude. Equal values are no near choice: the first is taken.
    """
    for node in (node for node in network.nodes if node.op == "max_pool2d"):
        (height, width), (top, left) = node.params["stride"], node.params["padding"]
        for U in (torch.from_numpy(a[node.inputs[0]])[None] for a in activations):
            # One window more at the far sides, for ceil mode.
            padded = F.pad(U, (left, left + width, top, top + height), value=-torch.inf)
            windows = F.unfold(padded, node.params["kernel"], node.params["dilation"], 0, node.params["stride"])
            first, second = windows.unflatten(1, (U.shape[1], -1)).topk(2, dim=2).values.unbind(2)
            if ((first > second) & (first - second < gap * U.abs().max())).any():
                return True
    return False


# ---- many cases


def load(name: str):
    """The object that "module:object" names, or the module that "module" names; the working directory counts.

    Raises InputError, one line, where there is none.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        return attrgetter(attribute)(found) if attribute else found
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise InputError(f"cannot load {name!r}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")


def plan(dtypes: Sequence[str] = (), only: Sequence[str] = (), arrays: bool = False) -> list[tuple[str, str]]:
    """The rows to fill, (function, dtype), in the order of a port.

    dtypes: () takes every one that a function is compared in; for `arrays` of NumPy float64 and float32. only: names of
    functions, with their group or without, or their beginnings. Raises InputError for what is never compared.
    """
    for dtype in dtypes:
        if dtype not in NUMPY:
            raise InputError(f"dtype {dtype!r} is none of {', '.join(NUMPY)}")
    for wanted in only:
        if not any(_begins(name, wanted) for name in NAMES):
            raise InputError(f"nothing that is compared begins with {wanted!r}; there are {', '.join(NAMES)}")
    dtypes = dtypes or (("float64", "float32") if arrays else ("float64", "float32", "bfloat16", "float16"))
    names = [name for name in NAMES if not only or any(_begins(name, wanted) for wanted in only)]
    found = [(name, dtype) for name in names for dtype in NUMPY if getattr(torch, dtype) in _tolerances(name)]
    found = [(name, dtype) for name, dtype in found if dtype in dtypes]
    if not found:
        raise InputError(f"{', '.join(names)} is not compared in {', '.join(dtypes)}")
    return found


def _begins(name, wanted):
    return name.startswith(wanted) or name.partition(".")[2].startswith(wanted)


def _tolerances(name):
    return NETWORK if name == NETWORKS else OPERATORS[name].tolerance


QUICK = 50_000  # steps of a case, one after the other in an interpreter


def check(name, implementation, dtype, examples, source="", device="cpu", quick=False) -> Row:
    """Compare one function in one dtype on `examples` generated cases; the row tells how it went.

    implementation: a TorchPort of this dtype, or an object of functions on arrays. source: Python that defines
    `implementation`, for the lines that repeat a failure. device: whose kernels a TorchPort runs. quick: a failing case
    is not made smaller, nor every kind of block walked, nor much pooled at once; where a case takes seconds.
    """
    tally = _Tally(name, implementation, dtype)
    absent = None if isinstance(implementation, TorchPort) else _absent(name, implementation)
    if absent is not None:
        return tally.row(device, f"there is no function {absent}")

    phases = [Phase.explicit, Phase.generate] + ([] if quick else [Phase.shrink])

    @settings(
        max_examples=examples, database=None, derandomize=True, deadline=None, report_multiple_bugs=False,
        phases=phases, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cnns() if name == NETWORKS else cases(OPERATORS[name], dtype))
    def every_case(case):
        assume(not quick or name == NETWORKS or OPERATORS[name].work(case.arguments) <= QUICK)
        if isinstance(case, Cnn):
            assume(not has_near_choices(*activations_of(case, dtype), gap=NEAR[dtype]))
        tally.add(case, _expected(case, dtype))

    if name == NETWORKS and not quick:
        for i, block in enumerate(BLOCKS):  # chance alone leaves some out
            every_case = example(Cnn((block,), i, (9, 8), images=2, peaks=3, upsample=1 + i % 2))(every_case)
    for arguments in () if name == NETWORKS else OPERATORS[name].edges(getattr(torch, dtype)):
        every_case = example(Case(name, arguments))(every_case)
    try:
        every_case()
        tally.check_calls()
    except (Exception, SystemExit):
        if tally.failure is None:  # not the implementation's
            raise
        return tally.row(device, tally.report(source))
    return tally.row(device)


def _absent(name, implementation):
    """The first of the functions behind a row that the implementation lacks, or None."""
    beside = {"retrieval.score": ["retrieval.terms"], NETWORKS: ["network.forward"],
              "peak_stimulation.backward": ["peak_stimulation.forward"],
              "pseudo_labels.assign": ["pseudo_labels.drawn"]}  # fmt: skip
    for function in (name, *beside.get(name, ())):
        try:
            attrgetter(function)(implementation)
        except AttributeError:
            return function
    return None


def _described(network):
    """The nodes in one line: name = operator(inputs)."""
    return "; ".join(f"{n.name} = {n.op}({', '.join(n.inputs)})" if n.name != n.op else n.op for n in network.nodes)


class _Tally:
    """What the cases of one row have shown so far."""

    def __init__(self, name, implementation, dtype):
        self.name, self.implementation, self.dtype = name, implementation, dtype
        self.cases, self.largest, self.seconds = 0, 0.0, 0.0
        self.failure, self.calls = None, set()

    def add(self, case, expected):
        """Compare one case. What goes wrong is kept, the last being what hypothesis has made smallest, and raised."""
        try:
            begun = time.perf_counter()
            answer = self._watched(case) if self.cases < WATCHED else _answer(case, self.implementation, self.dtype)
            self.seconds += time.perf_counter() - begun
            self.largest = max(self.largest, _largest_error(answer, expected, case, self.dtype))
            self.cases += 1
        except (Exception, SystemExit) as error:
            self.failure = (case, error)
            self.largest = max(self.largest, getattr(error, "size", 0.0))
            raise

    def _watched(self, case):
        """The answer, and which of torch's operators gave it."""
        if not isinstance(self.implementation, TorchPort):
            return _answer(case, self.implementation, self.dtype)
        with Recorder() as recorder:
            answer = _answer(case, self.implementation, self.dtype)
        self.calls |= recorder.calls
        self.last = case
        return answer

    def check_calls(self):
        """A fast path that was not taken would prove nothing."""
        if isinstance(self.implementation, TorchPort):
            wanted = WALK if self.name == NETWORKS else OPERATORS[self.name].calls
            if missing := set(wanted) - self.calls:
                self.failure = (self.last, Mismatch(f"the operators {sorted(missing)} did not run"))
                raise self.failure[1]

    def row(self, device, failure=None):
        if not isinstance(self.implementation, TorchPort):
            ran = "arrays"
        else:
            ran = " + ".join(sorted({runs_on(call, device) for call in self.calls})) or "torch code"
        equation = "Eq. 4-5" if self.name == NETWORKS else OPERATORS[self.name].equation
        tolerance = _tolerances(self.name)[getattr(torch, self.dtype)]
        return Row(self.name, equation, self.dtype, ran, self.cases, self.largest, tolerance, self.seconds, failure)

    def report(self, source):
        """What was wrong with the smallest case found, and lines that repeat it."""
        case, error = self.failure
        what = str(error) if isinstance(error, Mismatch) else f"it raised {type(error).__name__}: {error}"
        if isinstance(case, Cnn):
            what += f"\nThe network: {_described(to_reference(case.module()))}"
        script = f"{case}\n{source}\nfrom prm.parity_tests.conformance import answers, compare"
        script += f'\nprint(*answers(case, implementation, "{self.dtype}"), sep="\\n")'
        return f'{what}\n\n{script}\ncompare(case, implementation, "{self.dtype}")'
