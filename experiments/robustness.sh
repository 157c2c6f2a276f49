#!/usr/bin/env bash
# The figures of experiments/robustness.md, on Flickr8k's validation pictures in the folder FLICKR8K:
#   FLICKR8K=DIR experiments/robustness.sh
# Hours on two cores. Everything goes on where it was stopped; PART=attacks, corruptions, defences or detection alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
data=(data=tsv "data.root=$FLICKR8K" data.train=train.tsv data.val=val.tsv)
shipped=models/flickr8k-bilingual
quick=runs/flickr8k/quick-0
lstm=runs/family/lstm-0
robust=runs/flickr8k/robust-0
corrupted=runs/flickr8k/corrupted-0

trained() { # run, experiment: trained unless it is
    grep -qs '"state": "finished"' "$1/status.json" ||
        "$python" -m src.train "experiments=$2" seed=0 "name=${1#runs/}" ckpt=last
}
attack() { # folder, captioner, overrides …
    "$python" -m src.attack "model=$2" "${data[@]}" split=val "output=runs/robustness/$1" "${@:3}"
}
wanted() { [ "${PART:-$1}" = "$1" ]; }

trained "$quick" flickr8k/quick
trained "$lstm" family/lstm
trained "$robust" flickr8k/robust
trained "$corrupted" flickr8k/corrupted

if wanted attacks; then
    for captioner in "$shipped" "$quick" "$lstm"; do
        name=$(basename "$captioner")
        attack "$name/keyword" "$captioner" goal=keyword 'budgets=[8]' attack.steps=300
        attack "$name/sentence" "$captioner" goal=sentence 'budgets=[8]' attack.steps=300
        others=$(printf '%s\n' "$shipped" "$quick" "$lstm" | grep -vx "$captioner" | paste -sd,)
        attack "$name/linf" "$captioner" attack.steps=20 "transfer=[$others]"
        attack "$name/fgsm" "$captioner" attack=fgsm
        attack "$name/l2" "$captioner" attack.steps=20 attack.norm=l2
    done
    # The smallest change; 400 gradients a picture.
    attack flickr8k-bilingual/least "$shipped" attack=carlini_wagner goal=keyword limit=20
fi

if wanted corruptions; then
    "$python" -m src.robustness "model=[$shipped,$quick,$lstm,$robust,$corrupted]" "${data[@]}" split=val limit=100 \
        generation=greedy output=runs/robustness/corruptions
    "$python" -m src.robustness "model=[$shipped,$corrupted]" "${data[@]}" split=val limit=400 'severities=[3]' \
        generation=greedy output=runs/robustness/trained_on_damage
fi

if wanted defences; then
    attack robust-0/linf "$robust" attack.steps=20
    for share in 25 50 75 85; do # % of the robust one's weights: a curve of what is gained and given up
        soup=runs/robustness/soups/$share
        [ -e "$soup/config.yaml" ] ||
            "$python" -m src.soup "$shipped" "$robust" --weights $((100 - share)) "$share" -o "$soup"
        attack "soup-$share/linf" "$soup" attack.steps=20 'budgets=[1]'
    done
    "$python" -m src.attack_report runs/robustness/{flickr8k-bilingual,soup-{25,50,75,85},robust-0}/linf \
        -o docs/robustness.svg
    # All 1,000 pictures.
    attack soup-85/all runs/robustness/soups/85 attack.steps=10 'budgets=[1]' limit=null
    attack flickr8k-bilingual/all "$shipped" attack.steps=10 'budgets=[1]' limit=null
    "$python" -m src.attack_report runs/robustness/{flickr8k-bilingual,soup-85}/all
    attack corrupted-0/linf "$corrupted" attack.steps=20 'budgets=[1]'
    for defence in jpeg bits blur random_resize; do
        attack "$defence/linf" "$shipped" attack.steps=20 "defence=$defence" 'budgets=[1]'
    done
fi

if wanted detection; then
    attacked=runs/robustness/flickr8k-bilingual/linf/pictures
    "$python" -m src.detect auroc --known "$FLICKR8K/val.tsv" --limit 100 --unknown "$attacked/1" \
        --unknown "$attacked/4" --unknown "$attacked/8" --unknown data/scenes/images \
        --html runs/robustness/detection.html
fi
