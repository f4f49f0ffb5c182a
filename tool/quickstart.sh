#!/bin/sh
# From a fresh clone to a trained and scored network: installs what is missing, draws the street scenes, trains
# Sketch-and-Fill on MobileNet-V2 on them, evaluates it and saves pictures. A second call reuses what is there.
#
#   sh tool/quickstart.sh [section.key=value ...]
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
install_env "" ""
"$PYTHON" -m tool.launch train street sfnet_mobile "$@" || exit
if [ "$PYTHON" = .venv/bin/python ]; then
    printf '\nbefore commands that begin with python:  . .venv/bin/activate\n'
fi
[ $# -gt 0 ] || printf '\nexpected: a mean IoU of about 64 (docs/results.md); a point or two off is chance\n'
cat <<END

the report, a page for your browser:    exp/street/sfnet_mobile/result/val-whole/report.html
pictures (photo | truth | prediction):  exp/street/sfnet_mobile/result/val-whole/pictures
scores:                                 exp/street/sfnet_mobile/result/val-whole/metrics.json
your own photo:                         python -m tool.predict exp/street/sfnet_mobile/model/last.pth PHOTO --out exp/predicted --save overlay
next, your own data or Cityscapes:      README.md, "Your own data" and "Real data"
the same network with another setting:  sh tool/train.sh street sfnet_mobile train.epochs=40 --exp exp/street/longer
END
