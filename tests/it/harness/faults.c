// Preloaded library that injects disk faults into one process, for files below `/data/spool/`. The file
// that OUTPACE_FAULTS names holds the current fault. `eio` fails synchronisation, `full` fails writes
// with ENOSPC, and `slow` delays synchronisation by 200 ms. Any other word injects nothing.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int word_is(const char *word) {
  const char *path = getenv("OUTPACE_FAULTS");
  char text[16] = {0};
  if (!path) return 0;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  return n > 0 && strncmp(text, word, strlen(word)) == 0;
}

static int of_spool(int fd) {
  char link[64], path[512];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return strstr(path, "/data/spool/") != NULL;
}

static int synchronise(int fd, const char *name) {
  if (of_spool(fd)) {
    if (word_is("eio")) return errno = EIO, -1;
    if (word_is("slow")) nanosleep(&(struct timespec){0, 200000000}, NULL);
  }
  int (*real)(int) = dlsym(RTLD_NEXT, name);
  return real(fd);
}

int fsync(int fd) { return synchronise(fd, "fsync"); }
int fdatasync(int fd) { return synchronise(fd, "fdatasync"); }

static int is_full(int fd) { return of_spool(fd) && word_is("full"); }

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (is_full(fd)) return errno = ENOSPC, -1;
  return syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  if (is_full(fd)) return errno = ENOSPC, -1;
  return syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t write(int fd, const void *data, size_t size) {
  if (is_full(fd)) return errno = ENOSPC, -1;
  return syscall(SYS_write, fd, data, size);
}
