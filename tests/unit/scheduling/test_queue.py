from __future__ import annotations

from support.scheduling import make_request
from trierarch.python_backend.scheduling.queue import WaitingQueue
from trierarch.python_backend.sequence import Sequence, SequenceStatus


def make_sequence(sequence_id: int, arrival_time: float = 0.0, priority: int = 0) -> Sequence:
    request = make_request(str(sequence_id), 1, arrival_time=arrival_time, priority=priority)
    return Sequence(sequence_id, request, 0, [1])


def order(queue: WaitingQueue) -> list[int]:
    return [sequence.sequence_id for sequence in queue]


def test_a_step_of_priority_is_worth_so_many_seconds_of_waiting() -> None:
    queue = WaitingQueue(ageing_seconds=5.0)
    for sequence in (make_sequence(0, 4.0), make_sequence(1, 8.0, priority=1), make_sequence(2, 9.5, priority=1)):
        queue.push(sequence)
    assert order(queue) == [1, 0, 2]


def test_equals_go_by_number_but_the_preempted_first() -> None:
    queue = WaitingQueue(ageing_seconds=5.0)
    for sequence_id in (2, 0, 1):
        queue.push(make_sequence(sequence_id))
    preempted = make_sequence(3)
    preempted.status = SequenceStatus.PREEMPTED
    queue.push(preempted)
    assert order(queue) == [3, 0, 1, 2]
    assert queue.num_paused_requests == 1


def test_taking_out_from_anywhere_and_what_is_not_here() -> None:
    queue = WaitingQueue(ageing_seconds=5.0)
    sequences = [make_sequence(sequence_id) for sequence_id in range(3)]
    for sequence in sequences:
        queue.push(sequence)
    queue.discard(sequences[1])
    queue.discard(sequences[1])
    queue.discard(make_sequence(9))
    assert order(queue) == [0, 2]
    assert next(iter(queue)) is sequences[0]
    assert len(queue) == 2


def test_who_is_told_may_leave_or_come_back_meanwhile() -> None:
    queue = WaitingQueue(ageing_seconds=5.0)
    for sequence_id in range(5):
        queue.push(make_sequence(sequence_id))
    told = []
    for sequence in queue.in_turn():
        told.append(sequence.sequence_id)
        queue.discard(sequence)
        if sequence.sequence_id % 2:
            queue.push(sequence)
    assert told == [0, 1, 2, 3, 4]
    assert order(queue) == [1, 3]
