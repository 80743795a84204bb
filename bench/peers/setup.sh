#!/bin/sh
# Set up the peers that bench/peers measures, each in an environment of its own below FOLDER. No root needed; about
# 2 GB and 5 minutes. What cannot be had is left out with a line that says so; run it again to try only that again.
#
#     bench/peers/setup.sh /somewhere/peers           # all of them
#     bench/peers/setup.sh /somewhere/peers http      # those that are named
#
# PYTHON names the interpreter: 3.11 is the one that Triton's wheel has a stub for.
set -u
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1" && cd "$1" || exit 2
shift
chosen="$*"
: "${PYTHON:=python3}"
ORT=onnxruntime==1.31.1
failed=0

# Make environment $1 with the packages that follow, unless it is there; what pip says goes to $1.log.
environment() {
    name=$1
    shift
    case " ${chosen:-$name} " in *" $name "*) ;; *) return 1 ;; esac
    [ -e "$name/ready" ] && { echo "$name: there already"; return 1; }
    rm -rf "$name"
    if "$PYTHON" -m venv "$name" >"$name.log" 2>&1 && "$name/bin/pip" install --no-cache-dir "$@" >>"$name.log" 2>&1; then
        return 0
    fi
    skip "pip failed"
}

skip() {
    echo "$name: left out, $1 (see $PWD/$name.log)"
    failed=1
    return 1
}

ready() {
    touch "$name/ready"
    echo "$name: ready"
}

# Triton 2.51.0, the whole server with its Python backend, is inside of pytriton's wheel; its parts look for each other
# in folders that pytriton makes at run time, made here once. Under NumPy 2 its Python backend returns empty outputs.
if environment triton 'numpy<2' $ORT; then
    if triton/bin/pip install --no-cache-dir --no-deps nvidia-pytriton==0.7.0 >>triton.log 2>&1; then
        inside=$(echo triton/lib/python3*/site-packages/pytriton/tritonserver)
        version=$(triton/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        stub=$inside/python_backend_stubs/$version/triton_python_backend_stub
        if [ -e "$stub" ]; then cp "$stub" "$inside/backends/python/" && ready; else skip "no stub for Python $version"; fi
    else
        skip "no wheel of nvidia-pytriton"
    fi
fi

# perf_analyzer's program is in this wheel and not in later ones.
if environment perf_analyzer 'numpy<2' nvidia-cuda-runtime-cu12; then
    if perf_analyzer/bin/pip install --no-cache-dir --no-deps tritonclient==2.51.0 >>perf_analyzer.log 2>&1; then
        # Debian's libb64, unpacked without installing it.
        (cd perf_analyzer && apt-get download libb64-0d && dpkg-deb -x libb64-0d_*.deb . && rm libb64-0d_*.deb) \
            >>perf_analyzer.log 2>&1
        libraries=$(echo "$PWD"/perf_analyzer/usr/lib/*-linux-gnu):$(
            echo "$PWD"/perf_analyzer/lib/python3*/site-packages/nvidia/cuda_runtime/lib)
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$PWD/perf_analyzer/bin/perf_analyzer" \
            >perf_analyzer/run && chmod +x perf_analyzer/run
        if perf_analyzer/run --version >>perf_analyzer.log 2>&1; then ready; else skip "a library is missing"; fi
    else
        skip "no wheel of tritonclient 2.51.0"
    fi
fi

environment mlserver mlserver==1.7.1 $ORT && ready
# What bench/peers/review.py reads reviews with; CVAT reads and writes its masks with datumaro.
environment review label-studio-sdk==2.1.2 datumaro==1.13.12 && ready
# What bench/peers/annotate.py puts drafts into: the whole Label Studio, and CVAT's client with what our own needs.
environment labelstudio label-studio==1.23.2 && ready
environment cvat cvat-cli==2.80.0 'cvat-sdk[masks]==2.80.0' grpcio grpcio-status 'protobuf>=6.33.5,<8' && ready
# What bench/peers/http_clients.py runs.
environment http openapi-spec-validator==0.9.0 openapi-python-client==0.29.1 schemathesis==4.32.5 && ready
exit $failed
