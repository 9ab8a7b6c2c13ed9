#!/usr/bin/env bash
set -euo pipefail

usage="usage: download_models.sh [-h] [-o FOLDER] [NAME...]

Downloads heads of the 2023 implementation, a few hundred MB each (the base is in each file), from
https://huggingface.co/necrashter/transformers-learnable-memory, or that repository at \$HF_ENDPOINT,
with \`python -m learnable_memory heads fetch\`.

  NAME                   CIFAR100, INaturalist, Places, Sun; all four if left out
  -o, --output FOLDER    where they are put (default: models, beside this script)
  -h, --help             show this and end

A file that is there already is left alone. What broke off is resumed by the next run."

fail() {
    printf 'download_models.sh: %s\n' "$1" >&2
    exit 2
}

project=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$project/models
names=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) echo "$usage" && exit ;;
        -o | --output) [ $# -gt 1 ] || fail "$1 needs a folder"
            folder=$2 && shift ;;
        CIFAR100 | INaturalist | Places | Sun) names+=("$1") ;;
        *) fail "unknown name $1; legal: CIFAR100, INaturalist, Places, Sun" ;;
    esac
    shift
done
[ ${#names[@]} -gt 0 ] || names=(CIFAR100 INaturalist Places Sun)

for name in "${names[@]}"; do
    file=${name}_model.pt
    if [ -e "$folder/$file" ]; then
        echo "$name: $folder/$file is there already"
    else
        PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} python -m learnable_memory heads fetch \
            necrashter/transformers-learnable-memory --filename "$file" --output "$folder"
    fi
done
