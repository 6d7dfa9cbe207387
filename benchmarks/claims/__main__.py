"""What the documentation claims about quality, measured: `python -m benchmarks.claims COMMAND --help`.

guidance      guidance and solvers on OpenMoji's groups (trains for an hour on 2 CPU cores)     page guidance.md
quality       time to quality of whole recipes, single choices, widths and sampling steps       page performance.md
fidelity      how often OpenMoji's drawing nearest to a picture is the prompted one (a minute)    no page
editing       semantic codes and edits against true counterparts (trains for two hours)         page semantic.md
measures      which measures rank known faults of pictures rightly (minutes)                    page evaluation.md
estimators    estimators of attribute directions (a minute)                                     page editing.md
papers        claims of the field's founding papers in miniature (trains for two hours)        page claims.md
conditions    tuning, LoRA, inpainting and two guidance scales on faces (trains for an hour)   page conditions.md
"""

from benchmarks.claims.conditions import conditions
from benchmarks.claims.editing import editing
from benchmarks.claims.estimators import estimators
from benchmarks.claims.fidelity import fidelity
from benchmarks.claims.guidance import guidance
from benchmarks.claims.measures import measures
from benchmarks.claims.papers import papers
from benchmarks.claims.quality import quality
from ldm_kit.cli import run_cli

if __name__ == "__main__":
    run_cli([guidance, quality, fidelity, editing, estimators, measures, papers, conditions])
