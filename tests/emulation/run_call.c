/* One call of the kernels: its memory comes as an image on the standard input, and goes back as it is
 * after the call. Pointers in it are offsets from its beginning. */
#include "../../worker/engines/native/csrc/forward.c"
#include <stdio.h>
#include <stdlib.h>

enum { FORWARD, SAMPLE };

static void transfer(size_t done, size_t wanted) {
    if (done != wanted) abort();
}

int main(void) {
    struct {
        int64_t what, model, batch, pointers, size;
    } call;
    transfer(fread(&call, sizeof call, 1, stdin), 1);
    int64_t *pointers = calloc((size_t)call.pointers, 8);
    char *image = aligned_alloc(64, (size_t)call.size);
    transfer(fread(pointers, 8, (size_t)call.pointers, stdin), (size_t)call.pointers);
    transfer(fread(image, 1, (size_t)call.size, stdin), (size_t)call.size);
    for (int64_t i = 0; i < call.pointers; i++) *(int64_t *)(image + pointers[i]) += (int64_t)image;
    if (call.what == FORWARD)
        millpond_forward((const struct model *)(image + call.model),
                         (const struct batch *)(image + call.batch));
    else
        millpond_sample((struct draw_batch *)(image + call.batch));
    transfer(fwrite(image, 1, (size_t)call.size, stdout), (size_t)call.size);
    return 0;
}
