# apt reads the files as another user, who cannot read those of this one.
get() { /usr/lib/apt/apt-helper -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=0 download-file "$1" "$2" >log 2>&1; }
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do get "$API/$n" "file$n" && echo ok || cat log >&2; done | grep -c ok | sed 's/$/ ok/'
get "$OTHER/1" first
if get "$OTHER/2" second; then exit 1; fi
grep -q '429' log && echo told
