"""Twelve questions of very different lengths, written for the demo."""

_MILL = """\
The mill at the foot of the hill has run since 1764. Its wheel is fed by a pond that the brook fills \
overnight; the miller opens the sluice at six in the morning and closes it when the level has sunk to \
the painted line. On a dry day that is after four hours, in spring after nine. Farmers bring grain \
whenever they please, a sack or a cartload at a time, and they do not like to wait. The first millers \
ground each sack as it came. The stones then ran half empty, and the pond was drained before noon with \
little flour to show for it. A later miller began to let the sacks gather on the floor, sorted by the \
kind of grain, and to start the stones only when enough of one kind lay there or when somebody had \
waited as long as it takes to drink a cup of tea. The pond lasted, the stones ran full, and on most \
days every farmer was home for dinner. His daughter added one rule: when a small sack is done, the \
farmer takes it and goes, and the next sack is poured into the place that became free, while the big \
ones go on. Nobody ever waited for somebody else's wheat again."""

DEMO_PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many minutes are there in two hours?",
    "Write one sentence about the sea.",
    "What is 17 + 25?",
    "Explain in two sentences why the sky is blue.",
    "A train leaves at 9:40 and arrives at 11:05. How long does the journey take? Show your steps.",
    "Give me a short recipe for pancakes with quantities for two people and no more than five steps.",
    "A farmer has 24 sacks of wheat. He sells a third of them in the morning and half of what is left "
    "in the afternoon. On the way home he gives one sack to his neighbour. How many sacks does he bring "
    "home? Write down each step of your calculation and end with the number alone.",
    "Rewrite this notice so that it is friendly and short: 'Persons who leave their vehicles in front "
    "of the entrance of the building, even for a short time, are herewith informed that such vehicles "
    "obstruct deliveries and that their removal will be arranged at the expense of the owner, without "
    "further notice and regardless of the reason for which they were left there.'",
    f"Read this text.\n\n{_MILL}\n\nWhat rule did the miller's daughter add?",
    f"Read this text, then sum it up in two sentences for somebody who has never seen a mill.\n\n{_MILL}"
    "\n\nThe brook has grown weaker in the last ten years, and the pond now lasts three hours on a dry "
    "day. The village talks of an engine. The miller says that an engine would only grind more air.",
)
