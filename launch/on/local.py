"""On this machine: one process, or several that find one another at an address."""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.on.job import Command, Job, Rendering, Say, call
from launch.on.supervise import supervise
from research.core.parts import part, require

ADDRESS = "127.0.0.1"


@part
class Local:
    """Processes on this machine.

    Attributes:
      processes: how many.
      port: where they meet, if they are several.
    """

    processes: int = 1
    port: int = 8476

    def __post_init__(self) -> None:
        require(
            self,
            (self.processes > 0, f"--processes {self.processes} must be at least 1"),
            (1024 <= self.port < 65536, f"--port {self.port} must be from 1024 to 65535"),
        )

    @property
    def installs(self) -> bool:
        """The environment here is used."""
        return False

    @property
    def jax_extra(self) -> str:
        """None: the environment here is used."""
        return ""

    @property
    def tools(self) -> tuple[str, ...]:
        """None but Python."""
        return ()

    @property
    def stays(self) -> bool:
        """The launch is the job's keeper."""
        return True

    def render(self, job: Job) -> Rendering:
        """Verify once, then start a worker a process."""
        program = (str(job.interpreter), f"{job.home}/worker.py")
        verify = Command(why="verify and unpack", words=(*program, "prepare"))
        workers = tuple(
            Command(
                why=f"worker {index}, again after 75 or a signal; output: worker-{index}.log",
                words=(*program, "run", "--", *self.meeting(index)),
            )
            for index in range(self.processes)
        )
        follow = Command(why="follow", words=("tail", "-F", f"{job.home}/worker-0.log"))
        return Rendering(
            files={"launch.json": job.spec()}, commands=(verify, *workers), later=(follow,)
        )

    def meeting(self, index: int) -> tuple[str, ...]:
        """Say where the processes meet and which one this is; one alone meets nobody."""
        if self.processes == 1:
            return ()
        counts = f"--coordinator {ADDRESS}:{self.port} --processes {self.processes}"
        return (*shlex.split(counts), "--process", str(index))

    def start(self, job: Job, say: Say) -> int:
        """Run it here until it ends for good."""
        rendering = self.render(job)
        verify, *workers = rendering.commands
        say(call(verify, say))
        say(f"output: {rendering.later[0].words[-1]}")
        return supervise(
            lambda: [worker.words for worker in workers],
            Path(job.home),
            max_restarts=job.max_restarts,
            say=say,
        )
