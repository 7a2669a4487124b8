"""Finds the rank that keeps a run from continuing, from what all ranks have reported."""

from collections.abc import Sequence

from hpc_recolor.runtime.process import ENDED, state_letter
from hpc_recolor.training.watchdog.heartbeat import Heartbeat, PeerStatus, RankState

# Why a rank is silent, by the state letter of its process (proc_pid_stat(5)).
SILENCE_REASONS = {
    "X": "its process is gone: killed, perhaps for memory",
    "Z": "its process was killed, perhaps for memory",
    "T": "its process is stopped",
    "S": "its process is alive, but its threads are stuck",
    "R": "its process is alive, but its threads are stuck",
    "D": "its process is waiting for a disk",
}

# A rank that is known to be dead, or is silent while others have lost a connection, gets no more time than this.
PROMPT_S = 5.0


def find_culprit(peers: Sequence[PeerStatus], *, silence_s: float, hang_s: float, machine: str) -> str | None:
    """One line that names the rank at fault, with host and phase; None while the run may continue.

    peers: all ranks. silence_s: a rank without heartbeats for this long is dead. hang_s: a run in which no rank changes
    its phase or step for this long hangs. machine: where process IDs can be looked up, see Heartbeat.
    """
    disconnected = [peer for peer in peers if peer.state is RankState.DISCONNECTED]
    silent = _find_silent(peers, silence_s, bool(disconnected), machine)
    if silent:
        return silent
    if disconnected:
        return _find_cause(peers, disconnected, silence_s)
    return _find_hanging(peers, hang_s)


def process_letter(heartbeat: Heartbeat, machine: str) -> str | None:
    """The state letter of a rank's process on `machine`, X if it is gone; None if it runs elsewhere."""
    return state_letter(heartbeat.pid) if heartbeat.machine == machine else None


def describe_silence(peer: PeerStatus, letter: str | None = None) -> str:
    """The line about a rank without heartbeats; letter: see process_letter."""
    reason = SILENCE_REASONS.get(letter or "", "killed, stopped, or its machine or network is gone")
    heartbeat, after = peer.heartbeat, f"no heartbeat for {max(1.0, peer.silent_s):.0f} s"
    if not heartbeat:
        return f"rank {peer.rank} sent {after} while starting ({reason})"
    return f"{heartbeat.who} sent {after}, last seen {heartbeat.where} ({reason})"


def furthest_behind(running: list[Heartbeat]) -> list[Heartbeat]:
    """The ranks that the others wait for; more than one where nothing distinguishes them.

    They are at the smallest step; of these, not in a collective; of these, in the phase that was entered first.
    """
    behind = [beat for beat in running if beat.step == min(beat.step for beat in running)]
    behind = [beat for beat in behind if not beat.in_collective] or behind
    oldest = max(behind, key=lambda beat: beat.still_s)
    return [beat for beat in behind if beat.phase == oldest.phase]


def _find_silent(peers: Sequence[PeerStatus], silence_s: float, some_disconnected: bool, machine: str) -> str | None:
    for peer in sorted(peers, key=lambda peer: -peer.silent_s):
        if peer.has_left or peer.silent_s < min(PROMPT_S, silence_s):
            continue
        letter = process_letter(peer.heartbeat, machine) if peer.heartbeat else None
        dead, alive = letter in ENDED, letter not in (None, "T", *ENDED)
        if peer.silent_s >= silence_s or dead or (some_disconnected and not alive):
            return describe_silence(peer, letter)
    return None


def _find_cause(peers: Sequence[PeerStatus], disconnected: list[PeerStatus], silence_s: float) -> str | None:
    """Why a collective failed in some ranks, though none is silent."""
    if all(peer.not_running_s < PROMPT_S for peer in disconnected):
        return None  # a rank that fails or falls silent in the meantime explains it better
    for peer in peers:
        if peer.heartbeat and peer.state is RankState.LEFT:
            error = f": {peer.heartbeat.error}" if peer.heartbeat.error else ""
            return f"{peer.heartbeat.who} exited before the others {peer.heartbeat.where}{error}"
    first = max(disconnected, key=lambda peer: peer.not_running_s)
    if first.not_running_s < silence_s + PROMPT_S or not first.heartbeat:
        return None
    own_error = f"{first.heartbeat.who} failed {first.heartbeat.where}: {first.heartbeat.error}"
    if "timed out" in first.heartbeat.error.lower():  # a collective's own limit was shorter than hang_s
        return _find_hanging(peers, silence_s) or own_error
    return own_error


def _find_hanging(peers: Sequence[PeerStatus], hang_s: float) -> str | None:
    running = [peer.heartbeat for peer in peers if peer.heartbeat and peer.is_running]
    still_s = min((beat.still_s for beat in running), default=0.0)
    if still_s < hang_s:
        return None
    hanging = furthest_behind(running)
    first = hanging[0]
    if len(hanging) == 1:
        return f"{first.who} hangs {first.where}, for {first.still_s:.0f} s, at {first.code_line}"
    names = ", ".join(f"{beat.rank} on host {beat.host}" for beat in hanging)
    return f"ranks {names} hang {first.where}, for {still_s:.0f} s, at {first.code_line}"
