// Allocations that fault where they are misused; loaded in front of the C library (LD_PRELOAD).
//
// What posix_memalign, memalign and aligned_alloc return, which is where torch keeps tensors, ends at
// a page that may not be touched, and begins after one that may not be written to. It comes filled
// with 0xff: NaN, or -1. Once freed its pages may not be touched either, and its addresses are not
// given out again. Up to 63 bytes at the end, for the alignment, are checked when it is freed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define ARENA (1UL << 44)  // addresses, not memory
#define FRESH 0xff
#define CANARY 0xca

typedef struct {
  size_t size;   // as asked for
  size_t pages;  // of data, between this header's and the guard
} Header;

static char *arena;
static size_t used;
static void (*real_free)(void *);
static void *(*real_realloc)(void *, size_t);
static size_t (*real_usable)(void *);
static int (*real_memalign)(void **, size_t, size_t);

__attribute__((constructor)) static void begin(void) {
  real_free = dlsym(RTLD_NEXT, "free");
  real_realloc = dlsym(RTLD_NEXT, "realloc");
  real_usable = dlsym(RTLD_NEXT, "malloc_usable_size");
  real_memalign = dlsym(RTLD_NEXT, "posix_memalign");
  void *got = mmap(0, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  arena = got == MAP_FAILED ? 0 : got;
}

static int is_ours(const void *p) {
  return arena && (const char *)p >= arena && (const char *)p < arena + ARENA;
}

static Header *header_of(void *p) {
  return (Header *)(((uintptr_t)p & ~(PAGE - 1)) - PAGE);
}

static void fail(const char *what) {
  if (write(2, what, strlen(what)) < 0) _exit(99);
  abort();
}

static void *guarded(size_t alignment, size_t size) {
  if (!arena || alignment > PAGE) return 0;
  size_t pages = (size + PAGE - 1) / PAGE;
  if (!pages) pages = 1;
  size_t total = (pages + 2) * PAGE;
  size_t offset = __atomic_fetch_add(&used, total, __ATOMIC_RELAXED);
  if (offset + total > ARENA) return 0;
  char *begin = arena + offset;
  if (mprotect(begin, (pages + 1) * PAGE, PROT_READ | PROT_WRITE)) return 0;
  char *end = begin + (pages + 1) * PAGE;
  char *data = (char *)((uintptr_t)(end - size) & ~(alignment - 1));
  if (data == end) data = end - PAGE;  // of no bytes
  *(Header *)begin = (Header){size, pages};
  mprotect(begin, PAGE, PROT_READ);
  memset(data, FRESH, size);
  memset(data + size, CANARY, end - (data + size));
  return data;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
  void *data = guarded(alignment, size);
  if (!data) return real_memalign(out, alignment, size);
  *out = data;
  return 0;
}

void *memalign(size_t alignment, size_t size) {
  void *out = 0;
  return posix_memalign(&out, alignment, size) ? 0 : out;
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

void free(void *p) {
  if (!is_ours(p)) {
    if (real_free) real_free(p);
    return;
  }
  Header *header = header_of(p);
  char *end = (char *)header + (header->pages + 1) * PAGE;
  for (char *at = (char *)p + header->size; at < end; ++at)
    if (*(unsigned char *)at != CANARY) fail("guarded memory: written beyond its end\n");
  // Mapped anew without access: the memory goes back, the addresses stay taken.
  mmap(header, (header->pages + 1) * PAGE, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void *realloc(void *p, size_t size) {
  if (!is_ours(p)) return real_realloc(p, size);
  void *moved = malloc(size);
  size_t old = header_of(p)->size;
  if (moved) {
    memcpy(moved, p, old < size ? old : size);
    free(p);
  }
  return moved;
}

size_t malloc_usable_size(void *p) {
  return is_ours(p) ? header_of(p)->size : real_usable(p);
}
