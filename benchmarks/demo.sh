#!/bin/sh
# What `make demo` runs: the main job on the embedded default, each line echoed as a user would type it.
set -eu

step() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}

step vgg-jax convert-weights demo
printf '\n$ vgg-jax train --head dense256\n' >&2
report=$(vgg-jax train --head dense256)
printf '%s\n' "$report"
run=$(printf '%s\n' "$report" | sed -n 's/^Run: //p')
step vgg-jax evaluate "$run"
picture=$(python -c 'from vgg_jax.demo.pictures import demo_folder; print(demo_folder())')/test/rings/rings-000.jpg
step vgg-jax predict "$run" "$picture"

cat <<END

The run lies in $run: config.toml, metrics.jsonl, checkpoints.
For your own photographs, one folder a class in PHOTOS/train (and PHOTOS/validation, PHOTOS/test if you have them),
where ImageNet's weights (59 MB) are downloaded on first use:

    . .venv/bin/activate
    vgg-jax train --data PHOTOS --augment keras
END
