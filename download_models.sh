#!/usr/bin/env bash
set -euo pipefail

usage="usage: download_models.sh [-h] [-o FOLDER] [NAME...]

Downloads heads of the 2023 implementation, a few hundred MB each (the base is in each file), from
https://huggingface.co/necrashter/transformers-learnable-memory, or that repository at \$HF_ENDPOINT.

  NAME                   CIFAR100, INaturalist, Places, Sun; all four if left out
  -o, --output FOLDER    where they are put (default: models, beside this script)
  -h, --help             show this and end

A file that is there already is left alone. What broke off is resumed by the next run."

repository=${HF_ENDPOINT:-https://huggingface.co}
repository=${repository%/}/necrashter/transformers-learnable-memory/resolve/main
attempts=4
client=  # curl or wget

fail() {
    printf 'download_models.sh: %s\n' "$1" >&2
    exit 2
}

# Headers of all answers on the way to the file, redirects included; none where nobody answers.
ask_headers() { # url
    if [ "$client" = curl ]; then
        curl --silent --location --head --connect-timeout 30 --max-time 120 "$1" || true
    else
        wget --spider --server-response --tries=1 --timeout=30 "$1" 2>&1 || true
    fi
}

# Sets status, size and sha256 of a file, each empty if it is not told. The hub tells the last two of large files where
# it sends on to their storage; the size may also be told there.
ask() { # url
    local line length=
    status='' size='' sha256=''
    while read -r line; do
        case $line in
            http/*) status=${line#* } status=${status%% *} length= ;;
            content-length:*) length=${line##* } ;;
            x-linked-size:*) size=${line##* } ;;
            x-linked-etag:*) sha256=${line##* } ;;
        esac
    done < <(ask_headers "$1" | tr -d '\r"' | tr '[:upper:]' '[:lower:]')
    # The hub has told of the file, and its storage may refuse to say more: the transfer shows whether it is there.
    [ -z "$size" ] || [ -z "$sha256" ] || [[ $status != 40[35] ]] || status=200
    size=${size:-$length}
    [[ $size =~ ^[0-9]+$ ]] || size=
    [[ $sha256 =~ ^[0-9a-f]{64}$ ]] || sha256=
}

# Goes on where the partial file ends.
transfer() { # url, partial file
    if [ "$client" = curl ]; then
        local progress=--silent
        [ ! -t 2 ] || progress=--progress-bar
        curl --fail --location "$progress" --connect-timeout 30 --speed-limit 1 --speed-time 60 \
            --continue-at - --output "$2" "$1"
    else
        local progress=(--quiet)
        [ ! -t 2 ] || progress+=(--show-progress)
        wget "${progress[@]}" --tries=1 --timeout=60 --continue --output-document="$2" "$1"
    fi
}

bytes_of() { # file
    [ -e "$1" ] || { echo 0; return; }
    wc -c <"$1" | tr -d ' '
}

# What a file is, by its first bytes: torch writes zip files, and wrote bare pickles before version 1.6.
# A zip ends with its list of contents: what broke off in a browser has none.
ends_whole() { # file
    tail -c 65557 "$1" | od -An -v -tx1 | tr -d ' \n' | grep -q 504b0506
}

kind_of() { # file
    [ -s "$1" ] || { echo 'an empty file'; return; }
    case $(head -c 4 "$1" | od -An -tx1 | tr -d ' \n') in
        504b0304) ends_whole "$1" && echo checkpoint || echo 'a file that is cut short' ;;
        8002*) echo checkpoint ;;
        3c*) echo 'a web page' ;;
        76657273) echo 'a git-lfs pointer' ;;
        *) echo 'something else' ;;
    esac
}

sha256_of() { # file; empty without a program for it
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1" | cut -c 1-64
    elif command -v shasum >/dev/null; then
        shasum -a 256 <"$1" | cut -c 1-64
    fi
}

# Leaves all bytes of the file in the partial file, or ends.
fetch() { # url, partial file
    local attempt code
    for ((attempt = 1; attempt <= attempts; attempt++)); do
        [ "$attempt" = 1 ] || sleep $((attempt - 1))
        ask "$1"
        case $status in
            2*) ;;
            '' | 429 | 5*) continue ;;
            *) fail "the server answers $status for $1: nothing to download there" ;;
        esac
        # Without a size nobody can tell whether what is there is all, or of the same file.
        [ -n "$size" ] && [ "$(bytes_of "$2")" -le "$size" ] || rm -f "$2"
        [ -z "$size" ] || [ "$(bytes_of "$2")" != "$size" ] || return 0
        code=0
        transfer "$1" "$2" || code=$?
        case $client-$code in
            *-0) [ -n "$size" ] && [ "$(bytes_of "$2")" -lt "$size" ] || return 0 ;;
            curl-23 | wget-3) fail "cannot write $2: is the disk full? What is there is kept; run this again to resume" ;;
            curl-33) rm -f "$2" ;; # the server cannot go on in the middle
        esac
    done
    [ -n "$status" ] || fail "no answer from ${1%%/necrashter/*}: is there a network? Tried $attempts times for $1"
    [[ $status == 2* ]] || fail "the server answers $status for $1, $attempts times: run this again later"
    fail "$1 broke off at $(bytes_of "$2") of ${size:-unknown} bytes, $attempts times: run this again to resume"
}

download() { # name, folder
    local url=$repository/$1_model.pt file=$2/$1_model.pt kind found checked='SHA-256 not checked'
    local part=$file.part
    if [ -e "$file" ]; then
        kind=$(kind_of "$file")
        [ "$kind" = checkpoint ] || fail "$file is there already, and is $kind: remove it and run this again"
        echo "$1: $file is there already"
        return
    fi
    fetch "$url" "$part"
    found=$(bytes_of "$part")
    if [ -n "$size" ] && [ "$found" != "$size" ]; then
        rm -f "$part"
        fail "$url gave $found bytes instead of $size: removed"
    fi
    kind=$(kind_of "$part")
    if [ "$kind" != checkpoint ]; then
        rm -f "$part"
        fail "$url gave $kind instead of a head file: removed"
    fi
    if [ -n "$sha256" ] && found=$(sha256_of "$part") && [ -n "$found" ]; then
        if [ "$found" != "$sha256" ]; then
            rm -f "$part"
            fail "$url gave a file with SHA-256 $found instead of $sha256: removed"
        fi
        checked='SHA-256 checked'
    fi
    mv -f "$part" "$file"
    echo "$1: $file, $(bytes_of "$file") bytes, $checked"
}

main() {
    local folder name names=()
    folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/models
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help)
                echo "$usage"
                return
                ;;
            -o | --output)
                [ $# -gt 1 ] || fail "$1 needs a folder"
                folder=$2
                shift
                ;;
            CIFAR100 | INaturalist | Places | Sun) names+=("$1") ;;
            *) fail "unknown name $1; legal: CIFAR100, INaturalist, Places, Sun" ;;
        esac
        shift
    done
    [ ${#names[@]} -gt 0 ] || names=(CIFAR100 INaturalist Places Sun)
    if command -v curl >/dev/null; then
        client=curl
    elif command -v wget >/dev/null; then
        client=wget
    else
        fail "needs curl or wget, and neither is installed"
    fi
    mkdir -p "$folder" 2>/dev/null || fail "cannot make the folder $folder"
    for name in "${names[@]}"; do
        download "$name" "$folder"
    done
}

main "$@"
