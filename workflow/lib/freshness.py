"""DVC's verdict on every stage, carried to Snakemake as time stamps.

Snakemake decides by time stamps, DVC by content. While Snakemake builds its graph, `key(stage)` asks DVC about that
stage and everything upstream of it, upstream first:

    fresh     it matches dvc.lock: command, parameters, content of dependencies and outputs. Files that are only absent
              (not pulled) do not matter.
    restored  it does not, but the run cache holds this very combination: its outputs are put back, and it is fresh.
    stale     otherwise, or if a stage upstream is stale. Dependencies that are fresh but absent are pulled, data sets
              fetched; what is in no cache or remote Snakemake sees missing, and makes.

A stale stage gets a key file newer than its outputs, so that its job and all after it are scheduled; a fresh one gets
a key older than anything. Outputs of fresh stages are put in time order, which git, `dvc pull` and `cp` do not keep,
and no output keeps a date that is still to come.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvc.stage import Stage

KEYS = Path(".snakemake/dvc")
BENCHMARKS = Path("results/benchmarks")  # STAGE.tsv: Snakemake counts it among the outputs of a job
_LONG_AGO = 1_000_000  # seconds since 1970


class Survey:
    """Verdicts of one Snakemake run."""

    def __init__(self) -> None:
        from dvc.repo import Repo

        self.repo = Repo(_wait_for_lock=True)
        self._begun = time.time_ns() - 1_000_000_000  # before any key that this run writes
        self.reasons: dict[str, list[str]] = {}  # stage -> why it is stale; empty where it is fresh
        # kept here, for DVC forgets its index, and reads all files again, each time that it takes its lock
        self.graph = self.repo.index.graph  # edges lead from a stage to those it needs
        self.stages = {stage.addressing: stage for stage in self.graph}
        self.recorded = {out.fs_path: out.hash_info for stage in self.graph for out in stage.outs}
        self.has_remote = bool(self.repo.config["core"].get("remote"))
        self._pulled_run_cache = False
        # Snakemake lists a folder once, at the first of several targets, and takes what comes later for missing
        KEYS.mkdir(parents=True, exist_ok=True)
        for name in self.stages:
            with suppress(FileExistsError):
                (KEYS / name).touch(exist_ok=False)

    def settle(self, target: str, look_only: bool) -> None:
        """Reach a verdict on `target` and all upstream. With `look_only` nothing is pulled or restored."""
        import networkx as nx
        from dvc.repo import lock_repo

        with lock_repo(self.repo):
            chain = list(nx.dfs_postorder_nodes(self.graph, self.stages[target]))
            for stage in chain:
                if stage.addressing not in self.reasons:
                    needs = list(self.graph.successors(stage))
                    self.reasons[stage.addressing] = self._judge(stage, needs, look_only)
                    _write_key(stage.addressing, self.reasons[stage.addressing])
            self._put_in_time_order(chain)

    def _judge(self, stage: Stage, needs: list[Stage], look_only: bool) -> list[str]:
        upstream = [f"after {need.addressing}" for need in needs if self.reasons[need.addressing]]
        reasons = upstream or self._changes(stage)
        if not reasons or look_only:
            return reasons
        self._bring([need for need in needs if not self.reasons[need.addressing]])
        if not upstream and all(dep.exists for dep in stage.deps) and self._restore(stage):
            return []
        return reasons

    def _changes(self, stage: Stage) -> list[str]:
        """How the stage differs from dvc.lock, files that are only absent left aside."""
        reasons = ["command"] if stage.changed_stage() else []
        for dep in stage.deps:
            for name, state in dep.status().items():
                if state != "deleted":
                    reasons.append(f"{name}: {state}")
                elif dep.hash_info and self.recorded.get(dep.fs_path, dep.hash_info) != dep.hash_info:
                    reasons.append(f"{name}: another version is recorded")
        for out in stage.outs:
            if out.exists:
                reasons += [f"{name}: {state}" for name, state in out.workspace_status().items()]
        return reasons

    def _bring(self, stages: list[Stage]) -> None:
        """Check out, or pull, the absent outputs of fresh stages."""
        absent = [stage.addressing for stage in stages if not _is_complete(stage)]
        if not absent:
            return
        try:
            if self.has_remote:
                self.repo.pull(targets=absent, allow_missing=True)
            else:
                self.repo.checkout(targets=absent, allow_missing=True)
        except Exception as error:  # a remote that cannot be reached: the stages will run instead
            print(f"dvc: could not pull {' '.join(absent)}: {error}", file=sys.stderr)
        for stage in stages:
            # a data set that others publish is in no remote of ours; bring it now, while there is a network
            if not _is_complete(stage) and not list(self.graph.successors(stage)):
                self.repo.reproduce(stage.addressing, single_item=True)

    def _restore(self, stage: Stage) -> bool:
        """Outputs out of the run cache; False where this combination was never run."""
        from dvc.stage.cache import RunCacheNotFoundError

        if self.has_remote and not self._pulled_run_cache:
            self._pulled_run_cache = True
            try:
                self.repo.stage_cache.pull(None)
            except Exception as error:
                print(f"dvc: run cache not pulled: {error}", file=sys.stderr)
        try:
            self.repo.stage_cache.restore(stage, pull=self.has_remote)
        except RunCacheNotFoundError:
            return False
        stage.save()
        stage.commit()
        stage.dump(update_pipeline=False)
        return True

    def _put_in_time_order(self, chain: list[Stage]) -> None:
        newest: dict[Stage, int] = {}
        for stage in chain:
            latest = max((newest[need] for need in self.graph.successors(stage)), default=0)
            products = [*(Path(out.fs_path) for out in stage.outs), BENCHMARKS / f"{stage.addressing}.tsv"]
            for path in products:
                if path.exists():
                    modified = path.stat().st_mtime_ns
                    # a date to come, by another clock, would stay newer than the key of a stage that is stale
                    placed = modified if modified <= time.time_ns() else self._begun
                    if not self.reasons[stage.addressing]:
                        placed = max(placed, latest)
                    if placed != modified:
                        os.utime(path, ns=(placed, placed))
                    latest = max(latest, placed)
            newest[stage] = latest


def _is_complete(stage: Stage) -> bool:
    return all(out.exists for out in stage.outs)


def _write_key(stage: str, reasons: list[str]) -> None:
    path = KEYS / stage
    if reasons:
        path.write_text(f"stale at {time.time_ns()}: {'; '.join(reasons)}\n")
    elif not path.exists() or path.stat().st_mtime != _LONG_AGO:
        path.write_text("fresh\n")
        os.utime(path, (_LONG_AGO, _LONG_AGO))


_survey: Survey | None = None


def key(stage: str, look_only: bool = False) -> str:
    """Path of the key file of a stage, its time stamp set by DVC's verdict."""
    global _survey
    if _survey is None:
        _survey = Survey()
    if stage not in _survey.reasons:
        _survey.settle(stage, look_only)
    return str(KEYS / stage)
