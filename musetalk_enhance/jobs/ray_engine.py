"""Runs a job on a Ray cluster: Ray Data reads, restores and writes units; each worker holds the
networks."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sysconfig
import threading
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EnhanceError, MissingDependencyError, RestorerError
from ..weights.cache import CACHE_ENV, cache_dir
from .job import Job, ProcessorFactory, UnitCallback
from .manifest import State
from .ray_steps import Attempts, Failure, ProcessStep, pack, run_step, unpack, worker_run_info

if TYPE_CHECKING:
    from .models import RunInfo

PROCESSOR_CPUS, STEP_CPUS = 0.8, 0.1
"""Fractions of a core that Ray books for a processor and for a step beside it: one core per worker
in all. They only decide how many workers are placed on a machine; `Job.threads` sets the threads
of a processor."""
WAIT_TIMEOUT_S = 60.0
"""Seconds to wait for resources of the cluster that are in use by others."""
_NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
_CONNECT_TIMEOUT_S = 5.0
_ADDRESS = "auto | HOST:PORT of a running Ray cluster (`ray start --head` starts one)"


class RayEngine:
    """Runs jobs on a Ray cluster. A worker that is killed is restarted, and its unit is processed
    again.

    Each worker holds one set of networks. The input, the output and the weight cache must be on
    storage that every machine of the cluster sees under the same path, and each must have the same
    version of this library.

    Used in a ``with`` statement, it keeps the cluster that it started from one job to the next.

    Args:
        address: None starts a cluster on this machine alone, not reachable from outside, for
            the duration of the job; ``"auto"`` or ``"HOST:PORT"`` joins a cluster and leaves it
            running. If this process is already connected to a cluster, that one is used in any
            case.
        workers: number of processors side by side; None: one per GPU, or one if there is none.

    Raises:
        ConfigError: an argument is invalid.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError("workers", workers, "1 or more")
        self.address, self.workers = address, workers
        self._started = self._keep_cluster = False
        self._handler: Any = None
        self._inherited: dict[str, str] | None = None

    def __enter__(self) -> RayEngine:
        self._keep_cluster = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._keep_cluster = False
        self.close()

    def run_info(self, factory: ProcessorFactory) -> RunInfo:
        """See `Engine.run_info`: a worker is asked, and the cluster stays for the job that follows.

        Raises:
            ConfigError: there is no such cluster, or it has no room for the workers.
            MissingDependencyError: Ray is not installed.
            EnhanceError: raised by the worker.
        """
        ray = self.start()
        gpu = ray.cluster_resources().get("GPU", 0) >= 1
        self._worker_count(ray, gpu)
        threads = os.environ.get("OMP_NUM_THREADS")
        options = {
            "num_cpus": PROCESSOR_CPUS,
            "num_gpus": int(gpu),
            "max_calls": 1,
            **self._environment(),
        }
        with _ray_errors_translated(ray):
            answer = pickle.loads(
                ray.get(ray.remote(**options)(worker_run_info).remote(factory, threads))
            )
        if isinstance(answer, Failure):
            answer.throw()
        run_info: RunInfo = answer
        return run_info

    def run(self, job: Job, on_unit: UnitCallback) -> None:
        """See `Engine.run`. A cluster that it started is stopped in the end.

        Raises:
            ConfigError: there is no such cluster, or it has no room for the workers.
            MissingDependencyError: Ray is not installed.
            EnhanceError: raised by a worker; RestorerError if a unit kills every worker that
                gets it.
        """
        try:
            if not job.units:
                return
            ray = self.start()
            workers = min(self._worker_count(ray, job.gpu), len(job.units))
            with contextlib.closing(_states(ray, job, workers, self._environment())) as states:
                for state in states:
                    on_unit(state)
        finally:
            self.close()

    def close(self) -> None:
        """See `Engine.close`: stop the cluster if this engine started it, leave a joined one
        running."""
        if not self._started or self._keep_cluster:
            return
        import ray

        self._started, self._inherited = False, None
        with _quiet():
            ray.shutdown()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def start(self) -> Any:
        """The module ``ray``, connected to a cluster."""
        ray = _import_ray()
        if ray.is_initialized():
            return ray
        main = threading.current_thread() is threading.main_thread()
        self._handler = (
            signal.getsignal(signal.SIGTERM) if main else None
        )  # Ray sets one of its own
        try:
            with _quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tips for what Ray will do otherwise one day
                if self.address is None:
                    self._inherited = _variables()
                    _start_local_cluster(ray, self.workers or 1, self._inherited)
                else:
                    _join(ray, self.address)
        except BaseException:
            ray.shutdown()
            raise
        self._started = True
        return ray

    def _environment(self) -> dict[str, Any]:
        """Options of a task or actor that pass on our variables, if the cluster lacks them."""
        variables = _variables()
        return {} if variables == self._inherited else {"runtime_env": {"env_vars": variables}}

    def _worker_count(self, ray: Any, gpu: bool) -> int:
        """Number of workers.

        Raises:
            ConfigError: the cluster has no room for so many.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        capacity = sum(
            int(min(node.get("CPU", 0), node.get("GPU", 0) if gpu else node.get("CPU", 0)))
            for node in nodes
        )
        what = "GPU and core" if gpu else "core"
        allowed = (
            f"at most {capacity} on this cluster (one {what} each)"
            if capacity
            else f"a cluster with a free {what}"
        )
        workers = self.workers or (max(capacity, 1) if gpu else 1)
        if workers > capacity:
            raise ConfigError("workers", workers, allowed)
        if self.address is not None or not self._started:
            _wait_for(ray, workers, gpu)
        return workers


def _import_ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyarrow  # noqa: F401
            import ray
            import ray.data
    except ImportError as error:
        raise MissingDependencyError("ray[data]", "ray", "the engine ray", str(error)) from error
    return ray


def _start_local_cluster(ray: Any, workers: int, inherited: dict[str, str]) -> None:
    """Start a cluster on this machine alone, on the loopback device only, without telemetry."""
    variables = (
        inherited | _NO_TELEMETRY | _python_path() | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    )
    constants = vars(
        ray._private.ray_constants
    )  # the second variable, which was read when ray was imported
    with _override(os.environ, variables), _override(constants, {"ENABLE_RAY_CLUSTER": False}):
        ray.init(
            num_cpus=max(workers, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _python_path() -> dict[str, str]:
    """The variable that lets workers, whose working directory differs, import this copy of the
    library."""
    root = Path(__file__).resolve().parents[2]
    inherited = [
        os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path
    ]
    installed = root in {
        Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")
    }
    paths = inherited if installed else [str(root), *inherited]
    return {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}


def _join(ray: Any, address: str) -> None:
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdecimal():
            raise ConfigError("address", address, _ADDRESS)
        try:  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                "address", address, _ADDRESS, f" The connection failed ({error})."
            ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ConfigError("address", address, _ADDRESS, f" Ray says: {''.join(reason)}") from error


def _wait_for(ray: Any, workers: int, gpu: bool) -> None:
    """Wait until the cluster has room for the workers; others may be using it.

    Raises:
        ConfigError: it has none in time.
    """
    bundle = {"CPU": PROCESSOR_CPUS + 2 * STEP_CPUS} | ({"GPU": 1.0} if gpu else {})
    group = ray.util.placement_group([bundle] * workers, strategy="SPREAD")
    has_room = group.wait(timeout_seconds=WAIT_TIMEOUT_S)
    ray.util.remove_placement_group(group)
    if not has_room:
        allowed = f"as many as fit beside other jobs there (waited {WAIT_TIMEOUT_S:g} s)"
        raise ConfigError("workers", workers, allowed)


def _states(
    ray: Any, job: Job, workers: int, environment: dict[str, Any]
) -> Generator[State, None, None]:
    """The states of all units as they are finished."""
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    finished: set[int] = set()
    with _quiet(), _quiet_data(ray), _override(os.environ, _NO_TELEMETRY):
        units = _pipeline(ray, job, workers, attempts, environment)
        tables = iter(units.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0))
        try:
            while (table := _next(ray, tables)) is not None:
                number, value = unpack(table)
                if isinstance(value, Failure):
                    value.throw()
                if number not in finished:
                    finished.add(number)
                    yield value
        finally:
            if hasattr(tables, "close"):
                tables.close()
            del tables  # what stops the makers on a cluster that goes on
            ray.kill(attempts)
    if len(finished) != len(job.units):
        raise RestorerError(
            f"the cluster lost {len(job.units) - len(finished)} units; "
            "run the job again to process them"
        )


def _pipeline(ray: Any, job: Job, workers: int, attempts: Any, environment: dict[str, Any]) -> Any:
    """Read, restore, write: one unit is one block, and no more are in flight than the workers need.

    Ray Data restarts actors and repeats tasks whose process died without limit (``max_restarts``
    and ``max_task_retries`` are -1 there, and can no longer be set); `Attempts` sets the limit.
    """
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    common = {"batch_size": 1, "batch_format": "pyarrow", **environment}
    loading = {"make_processor": job.make_processor, "threads": job.threads, "attempts": attempts}
    beside = common | {"num_cpus": STEP_CPUS, "compute": TaskPoolStrategy(workers)}
    pool = ActorPoolStrategy(
        size=workers, max_tasks_in_flight_per_actor=2
    )  # one is made, one is at hand
    units = ray.data.from_arrow([pack(number, unit) for number, unit in enumerate(job.units)])
    return (
        units.map_batches(
            run_step, fn_kwargs={"name": "read", "step": job.read, "attempts": attempts}, **beside
        )
        .map_batches(
            ProcessStep,
            fn_constructor_kwargs=loading,
            compute=pool,
            num_cpus=PROCESSOR_CPUS,
            **({"num_gpus": 1} if job.gpu else {}),
            **common,
        )
        .map_batches(
            run_step, fn_kwargs={"name": "write", "step": job.write, "attempts": attempts}, **beside
        )
    )


def _next(ray: Any, tables: Iterator[Any]) -> Any:
    with _ray_errors_translated(ray):
        return next(tables, None)


def _variables() -> dict[str, str]:
    """The environment variables that workers need."""
    variables = {
        name: value for name, value in os.environ.items() if name.startswith("MUSETALK_ENHANCE_")
    }
    return variables | {CACHE_ENV: str(cache_dir())}


@contextlib.contextmanager
def _ray_errors_translated(ray: Any) -> Iterator[None]:
    """Raise Ray's errors as ours."""
    try:
        yield
    except EnhanceError:
        raise
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RestorerError(
            f"the Ray cluster failed: {lines[-1] if lines else type(error).__name__}. "
            "Finished units stay finished. Each machine must have this version of "
            "musetalk_enhance, and see the same folders"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let Ray log errors only."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _quiet_data(ray: Any) -> Iterator[None]:
    """Hide the progress bars of Ray Data: the caller has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn of an option of their own
        options = vars(ray.data.DataContext.get_current())
    with _override(options, {"enable_progress_bars": False, "print_on_execution_start": False}):
        yield


@contextlib.contextmanager
def _override(mapping: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set `values` in a mapping for the duration of the block."""
    previous = {name: mapping[name] for name in values if name in mapping}
    mapping.update(values)
    try:
        yield
    finally:
        for name in values:
            del mapping[name]
        mapping.update(previous)
