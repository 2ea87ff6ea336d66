"""Every kernel as machine code for GPUs of two makers, on a machine that has none: registers, stack, spills, memory.

Launchers are called on the CPU while launches are recorded, so what is compiled is what would be launched, specialised
as Triton's own JIT does it. Triton brings the compilers along. `prm bench kernels --compile-only` prints the table.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from prm import InputError
from prm.files import reason

# Name -> what Triton calls it: maker, architecture, threads that run in step.
TARGETS = {
    "sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "sm_100": ("cuda", 100, 32),
    "gfx90a": ("hip", "gfx90a", 64), "gfx942": ("hip", "gfx942", 64), "gfx1100": ("hip", "gfx1100", 32),
}  # fmt: skip
PROCESSES = 2  # of a whole table; what is few rows takes one
NOT_SUPPORTED = "not supported: ieee is used"
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def compile_table(
    targets: Sequence[str] = tuple(TARGETS),
    kernels: Sequence[str] = (),
    configurations: Sequence[str] = ("default",),
    added: Mapping[str, Mapping[str, Mapping[str, int]]] | None = None,
    only: str = "",
) -> list[dict]:
    """A row for each kernel, dtype, precision, form of code, configuration and target.

    kernels: names; none for all of them. added: configurations beside those of `launching.CONFIGURATIONS`. only: text
    that a row's dtype, precision and form, with spaces between, must hold.

    A row: kernel, dtype, precision, form, configuration, target, note, registers, stack_bytes, spill_bytes (the last
    two of one thread), shared_bytes (of a program), seconds; all numbers None and `note` the reason where the compiler
    fails. Raises InputError for a name that nothing has.
    """
    for name in targets:
        if name not in TARGETS:
            raise InputError(f"--target {name}: known are {', '.join(TARGETS)}")
    added = added or {}
    _check_names(kernels, configurations, added)
    # The flag is read when a kernel is defined: under it there would be nothing to compile.
    environment = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "PRM_KERNELS")}
    asked = {"targets": list(targets), "kernels": list(kernels), "configurations": list(configurations),
             "added": added, "only": only, "parts": 1 if only else PROCESSES}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:  # an empty cache: what is found there comes without its log
        environment |= {"TRITON_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        started = [_start(asked | {"part": part}, environment) for part in range(asked["parts"])]
        answers = [process.communicate() for process in started]
    for process, (_, error) in zip(started, answers):
        if process.returncode:
            raise InputError((error.strip().splitlines() or ["a compiler process ended without a word"])[-1])
    rows = [json.loads(line) for found, _ in answers for line in found.splitlines()]
    return sorted(rows, key=lambda row: row.pop("number"))


def kernel_names(text: str = "") -> list[str]:
    """The kernels whose name holds the text. Raises InputError if none does."""
    from prm.accelerated.kernels.launching import CONFIGURATIONS

    found = [name for name in CONFIGURATIONS if text in name]
    if not found:
        raise InputError(f"--only {text}: no kernel has that in its name; there are {', '.join(CONFIGURATIONS)}")
    return found


def _check_names(kernels: Sequence[str], configurations: Sequence[str], added: Mapping[str, Mapping]) -> None:
    from prm.accelerated.kernels.launching import CONFIGURATIONS

    for name in kernels:
        if name not in CONFIGURATIONS:
            raise InputError(f"no kernel is called {name}; there are {', '.join(CONFIGURATIONS)}")
    for name in configurations:
        if not any(name in {**CONFIGURATIONS[kernel], **added.get(kernel, {})} for kernel in kernels or CONFIGURATIONS):
            raise InputError(f"none of these kernels has a configuration {name}")


def spills(rows: Sequence[dict]) -> list[str]:
    """What is wrong with rows of `compile_table`, a line each: what does not compile, and what spills."""
    lines = []
    for row in rows:
        name = " ".join(row[key] for key in ("kernel", "dtype", "precision", "form", "configuration", "target"))
        if row["registers"] is None:
            lines.append(f"{name}: {row['note']}")
        elif row["spill_bytes"]:
            lines.append(f"{name}: spills {row['spill_bytes']} bytes a thread")
    return lines


def _start(asked: dict, environment: dict) -> subprocess.Popen:
    command = [sys.executable, "-m", "prm.eval.bench.kernels.table", json.dumps(asked)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


# ---- in a process of its own: what is compiled


@dataclass(frozen=True)
class Job:
    """One launch to be compiled for one target; `launch` as `launching.recording` keeps it."""

    launch: object
    target: str
    label: dict
    note: str = ""


def _jobs(targets, kernels, configurations, added, only) -> Iterator[Job]:
    """Each different launch of the samples once for each target."""
    from prm.accelerated.kernels import launching

    for kernel, named in added.items():
        launching.CONFIGURATIONS[kernel] = launching.CONFIGURATIONS[kernel] | named
    done = set()
    for label, launch in _launches(kernels or tuple(launching.CONFIGURATIONS), configurations):
        for target in targets if only in f"{label['dtype']} {label['precision']} {label['form']}" else ():
            job = _supported(Job(launch, target, label))
            source, options = specialised(job)
            key = (source.hash(), str(options), target, job.note)
            if key not in done:
                done.add(key)
                yield job


def _launches(kernels: Sequence[str], configurations: Sequence[str]) -> Iterator[tuple[dict, object]]:
    """The samples' launches in each configuration, with what they are called."""
    from prm.accelerated.kernels import launching

    from .cases import samples

    for operator, launcher in launching.LAUNCHERS:
        operator.register_kernel("cpu")(launcher)  # recorded, they need no device
    wanted = [case for case in samples() if set(case.kernels) & set(kernels)]
    for name in configurations:
        having = [kernel for kernel in kernels if name in launching.CONFIGURATIONS[kernel]]
        for case in wanted:
            with ExitStack() as stack:
                # By default the launchers choose.
                for kernel in having if name != "default" else ():
                    stack.enter_context(launching.using(name, kernel))
                choices, kept = (stack.enter_context(f()) for f in (launching.listening, launching.recording))
                case.run(*case.inputs("cpu"))
            used = {kernel: choice for (kernel, _), choice in choices.items()}
            label = {"dtype": case.dtype, "precision": case.precision,
                     "form": f"{case.size} {getattr(case, 'kind', '')}".strip()}  # fmt: skip
            for launch in kept:
                kernel = launch.kernel.__name__
                if kernel in having:
                    yield {"kernel": kernel} | label | {"configuration": used[kernel]}, launch


def _supported(job: Job) -> Job:
    """The job itself, or with full float32 where the target's matrix units know no TF32: as the launcher does there."""
    if job.launch.constants.get("PRECISION") != "tf32":
        return job
    if "tf32" in _backend(job.target)[1].parse_options({}).allowed_dot_input_precisions:
        return job
    constants = {**job.launch.constants, "PRECISION": "ieee"}
    return replace(job, launch=replace(job.launch, constants=constants), note=NOT_SUPPORTED)


# ---- one compilation


def _backend(name: str):
    """Triton's target and the compiler for it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    target = GPUTarget(*TARGETS[name])
    return target, make_backend(target)


def specialised(job: Job):
    """The source and the compiler's options of a launch, as Triton's JIT makes them when it is launched: integers that
    are 1 become constants, those and pointers that 16 divides say so."""
    from triton.compiler import ASTSource
    from triton.runtime.jit import create_function_from_signature

    launch, (_, backend) = job.launch, _backend(job.target)
    named = {**launch.constants, **launch.options}
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, rest = bind(*launch.arguments, **named)
    options, *source = launch.kernel._pack_args(backend, named, bound, specialization, rest)
    return ASTSource(launch.kernel, *source), options.__dict__


def compiled(job: Job) -> dict:
    """The row of one job."""
    import time

    import triton

    started, log = time.perf_counter(), io.StringIO()
    source, options = specialised(job)
    triton.knobs.nvidia.dump_ptxas_log = True
    found = dict.fromkeys(("registers", "stack_bytes", "spill_bytes", "shared_bytes"))
    note = job.note
    try:
        with redirect_stdout(log):  # where Triton prints what ptxas says
            made = triton.compile(source, target=_backend(job.target)[0], options=options)
        usage = _nvidia(made.asm["cubin"], log.getvalue()) if "cubin" in made.asm else _amd(made.asm["amdgcn"])
        found |= usage | {"shared_bytes": made.metadata.shared}
    except Exception as error:  # whatever a compiler stumbles over is a row of the table
        note = f"FAILED: {type(error).__name__}: {reason(error)[-300:]}"  # the cause follows the source
    return {**job.label, "target": job.target, "note": note, **found, "seconds": time.perf_counter() - started}


def _nvidia(cubin: bytes, log: str) -> dict:
    """What cuobjdump says of the code, and ptxas of its spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout).groups()
    # A spill is stored once and may be loaded often.
    spilled = sum(int(stores) for _, stores, _ in SPILL.findall(log))
    return {"registers": int(registers), "stack_bytes": int(stack), "spill_bytes": spilled}


def _amd(code: str) -> dict:
    """What the assembly says of itself; a spilled register takes four bytes of a thread."""
    names = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    registers, spilled, stack = (int(re.search(rf"^\s*\.{name}:\s*(\d+)", code, re.M)[1]) for name in names)
    return {"registers": registers, "stack_bytes": stack, "spill_bytes": 4 * spilled}


def _main(asked: str) -> None:
    """Rows of one part of the jobs, every so-many-th, a line of JSON each."""
    given = json.loads(asked)
    part, parts = given.pop("part"), given.pop("parts")
    for number, job in enumerate(_jobs(**given)):
        if number % parts == part:
            print(json.dumps({"number": number} | compiled(job)), flush=True)


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except InputError as error:
        sys.exit(reason(error))
