// Preloaded library that answers look-ups of names below `flip.test`. The first look-up of a process
// gets the address in OUTPACE_FIRST, and each later one gets the address in OUTPACE_LATER.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_int lookups;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
      dlsym(RTLD_NEXT, "getaddrinfo");
  if (node && strstr(node, "flip.test"))
    node = getenv(atomic_fetch_add(&lookups, 1) ? "OUTPACE_LATER" : "OUTPACE_FIRST");
  return real(node, service, hints, found);
}
