"""Chats: messages that a small instructed model answers with words it was given, its own, or those of an earlier answer.

All texts are made here of short lists, so that no two prompts of other keys are alike. What a message is for was tried with
the demo model, greedy: copies and edits take four to six tokens a step from a plain look-up in the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from trierarch.benchmarks.workers.protocol import TokenIds


class Kind(StrEnum):
    """What a message asks for."""

    COPY = "copy"
    """A text again word for word, or one time of three its most important sentences."""
    EDIT = "edit"
    """Code again, a name in it changed."""
    PROSE = "prose"
    """A text of the model's own."""
    AGENTIC = "agentic"
    """The next step of an agent, of few kinds: asked again, it is answered again."""


@dataclass(frozen=True, slots=True)
class Chats:
    """Prompts depend on the seed, the key, and nothing else."""

    seed: int
    encode: Callable[[str], TokenIds]
    """A user's message as the token ids of a whole prompt, chat template included."""

    def prompts(self, kind: Kind, key: str, count: int) -> list[TokenIds]:
        """`count` prompts, all different."""
        return [self.encode(text) for text in messages(kind, f"{self.seed}/{key}", count)]


def messages(kind: Kind, key: str, count: int) -> list[str]:
    """`count` messages, all different; some hundreds at most."""
    made: dict[str, None] = {}
    index = 0
    while len(made) < count:
        made[_MAKERS[kind](random.Random(f"{key}/{kind}/{index}"), index)] = None
        index += 1
    return list(made)


def _list(names: str) -> tuple[str, ...]:
    return tuple(names.split(","))


_PEOPLE: Final = _list("Maren,Tobias,Ines,Halvard,Ruth,Casimir,Odile,Bruno,Selma,Anton,Greta,Ivo,Nadia,Piet,Clara,Emil")
_PLACES: Final = _list(
    "the harbour,the old mill,the tram depot,the orchard,the north quay,the post office,the glass house,the ferry hall,"
    "the quarry,the school yard,the salt store,the upper bridge,the bakery,the boat shed,the weather station"
)
_THINGS: Final = _list(
    "lamps,blue crates,maps,sacks of barley,copper pipes,letters,folding chairs,jars of honey,ropes,tin plates,"
    "wooden wheels,rolls of canvas,clay pots,brass bells,planks,umbrellas"
)
_TIMES: Final = _list(
    "before sunrise,at ten past nine,on Thursday evening,after the first frost,late in March,at noon,"
    "when the fog had lifted,on the second Sunday,just before closing time,during the long rain"
)
_WORK: Final = _list("counted,mended,painted,carried,sorted,weighed,listed,polished")
_SENTENCES: Final = (
    "{time} {a} {work} {n} {things} at {place}.",
    "{a} told {b} that {place} would be closed until {m} {things} had been delivered.",
    "Nobody at {place} could say why {b} had left {n} {things} beside the door.",
    "The notebook of {a} lists {n} {things}, {m} of them {work} by {b}.",
    "{a} walked from {place} to {other} and back {n} times without meeting anyone.",
    "It was {b} who noticed that {m} {things} were missing from {place}.",
    "{time} the road to {other} was wet, and {a} waited with {b} under a roof of tin.",
    "For {n} days {a} slept at {place} and wrote down every sound.",
    "{b} paid {m} coins for the {things} and sold them {time} at {other}.",
    "A sign at {place} says that {things} may be left there for {n} hours.",
    "In the end {a} {work} the {things} twice, because {b} did not trust the first result.",
    "{a} and {b} agreed to meet at {other} {time}, each with {n} {things}.",
)


def _copy(draw: random.Random, index: int) -> str:
    text = " ".join(_sentence(draw, pattern) for pattern in draw.sample(_SENTENCES, 11))
    task = "Quote the most important sentences of this text" if index % 3 == 2 else "Repeat this text"
    return f"{task} word for word:\n\n{text}"


def _sentence(draw: random.Random, pattern: str) -> str:
    a, b = draw.sample(_PEOPLE, 2)
    place, other = draw.sample(_PLACES, 2)
    sentence = pattern.format(
        a=a,
        b=b,
        place=place,
        other=other,
        things=draw.choice(_THINGS),
        time=draw.choice(_TIMES),
        work=draw.choice(_WORK),
        n=draw.randint(3, 60),
        m=draw.randint(3, 60),
    )
    return sentence[0].upper() + sentence[1:]


_MACHINES: Final = _list("Boiler,Crane,Kiln,Pump,Turbine,Press,Loom,Furnace,Elevator,Mixer,Compressor,Conveyor")
_PARTS: Final = _list("valve,gauge,lever,gate,motor,sensor,belt,nozzle,shutter,brake")
_SIDES: Final = _list("north,south,east,west,upper,lower,inner,outer,left,right")
_VALUES: Final = _list("pressure,temperature,speed,volume,weight,voltage,position,humidity,delay,flow")


def _edit(draw: random.Random, index: int) -> str:
    part = draw.choice(_PARTS)
    old, new = (f"{side} {part}" for side in draw.sample(_SIDES, 2))
    lines = [f"class {draw.choice(_MACHINES)}:"]
    for verb, state in (("open", "True"), ("close", "False")):
        past = f"{verb}ed" if verb == "open" else f"{verb}d"
        lines += [f"    def {verb}_{part}(self):", f"        self.is_open = {state}"]
        lines += [f'        self.log("{old} {past}")', ""]
    for value in draw.sample(_VALUES, 6):
        lines += [f"    def set_{value}(self, value):", f"        self.{value} = value"]
        lines += [f'        self.log("{value} set")', ""]
    code = "\n".join(lines)
    return f'Repeat this code word for word, but write "{new}" in place of "{old}":\n\n{code}'


_HEROES: Final = _list(
    "a retired clockmaker,a young ferry pilot,two sisters who run a bakery,a shy cartographer,an impatient gardener,"
    "a night watchman,a travelling piano tuner,the last lamplighter of a town,a beekeeper,a student of glaciers"
)
_TROUBLES: Final = _list(
    "finds a door that was not there yesterday,has to cross a mountain in winter,inherits a broken telescope,"
    "loses a letter that was never meant to be read,hears music from an empty house,must choose between two promises,"
    "learns that the river will be moved,receives a visitor from the future,forgets one word every day"
)
_ENDS: Final = _list(
    "Let it end quietly.,Let it end with a surprise.,Tell it in the first person.,Use long sentences.,"
    "Let every person speak at least once.,Begin in the middle.,Describe the weather often.,Tell it for children."
)


def _prose(draw: random.Random, index: int) -> str:
    return f"Write a long story about {draw.choice(_HEROES)} who {draw.choice(_TROUBLES)}. {draw.choice(_ENDS)}"


_GOALS: Final = _list(
    "find out why the nightly backup of {host} failed,free space on the disk of {host},"
    "bring the certificate of {host} up to date,move the mail queue of {host} to a new server,"
    "explain the slow responses of {host} to its owners,restore yesterday's database of {host},"
    "roll {host} back to the last release"
)
_HOSTS: Final = _list("alder,birch,cedar,elm,fir,hazel,larch,maple,oak,pine,rowan,willow,yew,ash,beech")
_ASKED: Final = _list(
    "Write the plan as a numbered list and give a reason for each step.,"
    "Write a report of three paragraphs for the team.,Write the message that you send to the person in charge."
)


def _agentic(draw: random.Random, index: int) -> str:
    goal = draw.choice(_GOALS).format(host=draw.choice(_HOSTS))
    return (
        f"You are an agent that looks after servers. Your goal: {goal}. "
        f"You have read the logs and know the cause. {draw.choice(_ASKED)}"
    )


_MAKERS: Final[dict[Kind, Callable[[random.Random, int], str]]] = {
    Kind.COPY: _copy,
    Kind.EDIT: _edit,
    Kind.PROSE: _prose,
    Kind.AGENTIC: _agentic,
}
