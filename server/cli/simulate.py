"""``bitfleet-server simulate``: a whole federation in one process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnncore.cli.options import add_json_option, add_model_options, build_model, positive_int, unsigned_int
from bnncore.errors import ConfigurationError

if TYPE_CHECKING:
    from server.simulate.report import RoundResult
    from server.simulate.run import OnRounds
    from server.simulate.scenario import Scenario
    from server.simulate.trainers import OpenTrainer

_EPILOG = """\
examples:
  bitfleet-server simulate --dataset digits --widths 64 --batch-size 20 --devices 10 --cohort 10 --rounds 10
      ten devices on the digits that ship with scikit-learn: a few seconds
  bitfleet-server simulate --dataset mnist --data ~/data --devices 1000 --cohort 100 --rounds 20 --alpha 0.5
      a thousand devices of very different class mixtures, a hundred of them in each round
  bitfleet-server simulate --dataset digits --widths 64 --devices 10 --rounds 10 --recipe onebit --secure
      the coordinator sees the sum of the devices' updates alone
  bitfleet-server simulate --dataset mnist --data ~/data --rounds 30 --state run --json run.json
      stopped with Ctrl-C or by a power cut, and gone on with by the same command

The same options give the same model, bit for bit, on any number of threads and in any order of arrivals.
"""


def add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser(
        "simulate",
        help="a coordinator and any number of devices in one process",
        description="Simulate a fleet: the coordinator and the devices' own code in one process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    add_model_options(parser)
    parser.add_argument("--dataset", default="mnist", metavar="NAME", help="what the devices share (mnist)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the data folder (the variable BITFLEET_DATA)")
    parser.add_argument("--devices", type=positive_int, default=10, metavar="N", help="in the fleet (10)")
    parser.add_argument("--cohort", type=positive_int, metavar="N", help="that train in a round (all)")
    parser.add_argument("--rounds", type=positive_int, default=30, metavar="N", help="to play (30)")
    parser.add_argument("--local-steps", type=positive_int, default=60, metavar="N", help="of a device in a round (60)")
    parser.add_argument("--batch-size", type=positive_int, default=100, metavar="N", help="samples a step (100)")
    parser.add_argument(
        "--alpha",
        type=float,
        default=float("inf"),
        metavar="A",
        help="Dirichlet parameter of the split (inf: IID)",
    )
    parser.add_argument("--recipe", metavar="NAME", help="onebit: strategy, codecs and statistics for a bit a weight")
    parser.add_argument("--strategy", metavar="NAME", help="that merges updates (fedavg)")
    parser.add_argument(
        *("--strategy-param", "-p"), action="append", default=[], metavar="NAME=NUMBER", help="a number of the strategy"
    )
    parser.add_argument("--up", metavar="CODEC", help="of updates (int8)")
    parser.add_argument("--down", metavar="CODEC", help="of models (int8)")
    parser.add_argument(
        "--statistics",
        type=unsigned_int,
        metavar="N",
        help="batches on which devices take batch norm's statistics of the merged model (0: those of training travel)",
    )
    parser.add_argument(
        "--local-tensors",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors that every device keeps to itself, such as '*.beta'; may be given again",
    )
    parser.add_argument(
        "--local-validation",
        type=float,
        default=0.0,
        metavar="F",
        help="part of each device's samples that it evaluates models on and never trains on (0)",
    )
    parser.add_argument(
        "--secure", action="store_true", help="secure aggregation: updates are added up under masks (codecs sign, int8)"
    )
    parser.add_argument(
        "--sum-only",
        action="store_true",
        help="with --secure: add the same vectors up without masks, for many devices; same result",
    )
    parser.add_argument(
        "--neighbours", type=unsigned_int, default=0, metavar="N", help="with --secure: that a device masks with (all)"
    )
    parser.add_argument(
        "--privacy", choices=("distributed", "central"), help="differential privacy, noise by devices or coordinator"
    )
    parser.add_argument("--epsilon", type=float, default=8.0, metavar="E", help="with --privacy: its budget (8)")
    parser.add_argument("--delta", type=float, default=1e-5, metavar="D", help="with --privacy: beside epsilon (1e-5)")
    parser.add_argument(
        "--clip",
        type=float,
        metavar="C",
        help="with --privacy and int8: largest L2 norm in steps of 1/127 (200 is usual)",
    )
    parser.add_argument("--preset", default="bitfleet", metavar="NAME", help="of the devices' training (bitfleet)")
    parser.add_argument("--optimizer", metavar="NAME", help="of the devices (the preset's own)")
    parser.add_argument(
        "--schedule", default="linear", metavar="NAME", help="step size over rounds: linear, cosine, constant (linear)"
    )
    parser.add_argument("--absent", type=float, default=0.0, metavar="P", help="chance of a member to be away (0)")
    parser.add_argument("--attackers", type=unsigned_int, default=0, metavar="N", help="devices that send poison (0)")
    parser.add_argument("--attack", metavar="NAME", help="negate or scale: what attackers send")
    parser.add_argument("--seed", type=unsigned_int, default=0, metavar="N", help="decides everything random (0)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="devices that train at once (all processors)")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="threads here, or workers on Ray (local)"
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="with --engine ray: the cluster to join (one is started here)"
    )
    parser.add_argument(
        "--cpus-per-device", type=float, metavar="C", help="with --engine ray: processors that a device trains on (1)"
    )
    parser.add_argument(
        "--shuffle-arrivals", type=unsigned_int, metavar="SEED", help="another order of the updates; same result"
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="work folder, to go on after an interruption (a temporary one)"
    )
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write event files for TensorBoard to DIR, round by round"
    )
    add_json_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Simulate; see ``server.simulate.run.simulate``."""
    from bnncore.cli.output import check_destination, say, write_json
    from server.app.logging import configure_logging
    from server.simulate.progress import progress_bar
    from server.simulate.report import summary
    from server.simulate.run import simulate
    from server.storage.state_folder import owned

    configure_logging("ERROR")
    check_destination(arguments.json, "--json")
    scenario = build_scenario(arguments)
    scenario.job()  # a wrong name is told before anything is made
    with (
        _engine(arguments) as open_trainer,
        _work_folder(arguments.state) as state,
        owned(state),
        progress_bar(scenario.rounds, is_shown=sys.stderr.isatty()) as show,
        _event_file(arguments.tensorboard) as log,
    ):

        def on_rounds(rounds: Sequence[RoundResult]) -> None:
            show(rounds)
            log(rounds)

        result = asyncio.run(
            simulate(
                scenario, state, open_trainer=open_trainer, shuffle=arguments.shuffle_arrivals, on_rounds=on_rounds
            )
        )
    write_json(result.to_json_object(), arguments.json)
    say(summary(result, scenario.spec.num_binary_weights), arguments.json)
    return 0


def build_scenario(arguments: argparse.Namespace) -> Scenario:
    """Turn the options into a scenario.

    Raises:
      BitfleetError: the data, the network or the options cannot be used.
    """
    from bnncore.data import open_dataset
    from server.simulate.scenario import Scenario

    if not arguments.secure and (arguments.sum_only or arguments.neighbours):
        raise ConfigurationError("--sum-only and --neighbours say how --secure is to be done; add --secure")
    with open_dataset(arguments.dataset, arguments.data, split="train") as dataset:
        shape, classes = dataset.input_shape, dataset.classes
    return Scenario(
        spec=build_model(arguments, input_shape=shape, classes=len(classes)),
        dataset=arguments.dataset,
        data=None if arguments.data is None else arguments.data.resolve(),
        classes=classes,
        devices=arguments.devices,
        cohort=arguments.cohort or arguments.devices,
        rounds=arguments.rounds,
        local_steps=arguments.local_steps,
        batch_size=arguments.batch_size,
        alpha=arguments.alpha,
        **_aggregation(arguments),
        local_tensors=tuple(arguments.local_tensors),
        local_validation=arguments.local_validation,
        preset=arguments.preset,
        optimizer=arguments.optimizer,
        step_schedule=arguments.schedule,
        absent=arguments.absent,
        attackers=arguments.attackers,
        attack=arguments.attack,
        secure=_secure(arguments) if arguments.secure else None,
        privacy=_privacy(arguments) if arguments.privacy else None,
        has_masks=not arguments.sum_only,
        seed=arguments.seed,
    )


def _secure(arguments: argparse.Namespace) -> dict[str, float]:
    """Collect the keys of ``secure_aggregation``; of distributed noise, 4 in 5 of the cohort share it out."""
    from bnncore.secure.terms import MIN_MEMBERS

    least = max(MIN_MEMBERS, (arguments.cohort or arguments.devices) * 4 // 5)
    return {"degree": arguments.neighbours, **({"min_members": least} if arguments.privacy == "distributed" else {})}


def _privacy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect the keys of ``privacy``."""
    chosen = {"mechanism": arguments.privacy, "epsilon": arguments.epsilon, "delta": arguments.delta}
    return {**chosen, **({} if arguments.clip is None else {"clip": arguments.clip})}


def _aggregation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Collect how updates travel and are merged: what the recipe says, where an option does not say it itself."""
    from server.jobs import recipe_of

    chosen = {
        "strategy": arguments.strategy,
        "up_codec": arguments.up,
        "down_codec": arguments.down,
        "statistics_batches": arguments.statistics,
        "strategy_params": dict(_strategy_param(text) for text in arguments.strategy_param) or None,
    }
    return {
        **({} if arguments.recipe is None else recipe_of(arguments.recipe)),
        **{name: value for name, value in chosen.items() if value is not None},
    }


def _strategy_param(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise ConfigurationError(f"--strategy-param must be NAME=NUMBER, got {text!r}") from None


@contextlib.contextmanager
def _engine(arguments: argparse.Namespace) -> Iterator[OpenTrainer]:
    """Make ready who trains."""
    if arguments.engine == "ray":
        from server.simulate.ray_cluster import RayCluster

        with RayCluster(arguments.ray_address, arguments.threads, arguments.cpus_per_device or 1.0) as cluster:
            yield cluster.trainer
        return
    if arguments.ray_address is not None or arguments.cpus_per_device is not None:
        raise ConfigurationError("--ray-address and --cpus-per-device say where Ray's workers train; add --engine ray")
    from bnncore.processors import usable_processors
    from server.simulate.trainers import ThreadTrainer

    threads = arguments.threads or max(1, int(usable_processors()))
    yield lambda job, dataset: ThreadTrainer(threads)


@contextlib.contextmanager
def _work_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
    else:
        with tempfile.TemporaryDirectory(prefix="bitfleet-simulate-") as folder:
            yield Path(folder)


@contextlib.contextmanager
def _event_file(folder: Path | None) -> Iterator[OnRounds]:
    """Have rounds written for TensorBoard, where that is asked for."""
    if folder is None:
        yield lambda rounds: None
        return
    from bnncore.tensorboard import EventWriter
    from server.simulate.scalars import RoundScalars

    with EventWriter(folder) as writer:
        yield RoundScalars(writer)
