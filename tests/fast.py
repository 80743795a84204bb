"""Options of ``fit`` that make a training a matter of seconds."""

KNOBS = (
    *("cams.scales=1", "segment.scales=1"),
    *("classify.workers=0", "cams.workers=0", "segment.workers=0"),
    *("classify.precision=fp32", "segment.precision=fp32"),
)
FAST = [
    *("--backbone", "resnet18", "--weights", "none", "--device", "cpu"),
    *("--size", "64", "--epochs", "1"),
    *(f"--set={knob}" for knob in KNOBS),
]
