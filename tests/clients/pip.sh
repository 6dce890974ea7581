seq 12 | xargs -P 4 -I{} "$PYTHON" -m pip index versions "tiny{}" --no-cache-dir --disable-pip-version-check \
  --index-url "$API/simple/" 2>/dev/null | grep -c '(1.0)' | sed 's/$/ ok/'
echo told
