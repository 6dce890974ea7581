seq 12 | xargs -P 4 -I{} "$PYTHON" -m pip index versions "tiny{}" --no-cache-dir --disable-pip-version-check \
  --index-url "$API/simple/" 2>/dev/null | grep -c '(1.0)' | sed 's/$/ ok/'
# At the same time where one is allowed: the others are told.
seq 3 | xargs -P 3 -I{} sh -c '"$PYTHON" -m pip index versions tiny --no-cache-dir --disable-pip-version-check --retries 0 \
  --index-url "$OTHER/simple/" > told{}.txt 2>&1 || true'
cat told1.txt told2.txt told3.txt | grep -o 'No matching distribution' | head -1 | sed 's/.*/told/'
cat told1.txt told2.txt told3.txt >&2
