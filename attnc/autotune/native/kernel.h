/* One kernel: its arguments packed but for its tensors' addresses, and a launch of it. */
/* what the hardware takes of parameters since 7.0, and more of them than any kernel has */
#define MOST_BYTES 32768
#define MOST_PARAMETERS 1024
#define MAP_ALIGNED 64

/* CUlaunchConfig of cuda.h */
typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
} Config;
typedef int (*Launch)(const Config *, void *, void **, void **);
typedef int (*Replace)(void *, void *);

/* where a tensor's address goes: into a word, or into a descriptor */
typedef struct {
    unsigned at, boxed;
} Open;

typedef struct {
    PyObject_HEAD
    Launch launch;
    Replace replace;
    void *function;
    unsigned threads, shared_bytes, bytes, parameters, tensors;
    unsigned char *image;
    unsigned *offsets;
    Open *open;
} Kernel;

/* Put addresses where they belong, and hand all to the driver; its answer. No Python runs. */
static int queue(const Kernel *self, const unsigned *grid, void *stream, const uint64_t *table,
                 const unsigned *places)
{
    unsigned char raw[self->bytes + MAP_ALIGNED];
    unsigned char *image = raw + (-(uintptr_t)raw & (MAP_ALIGNED - 1));
    void *parameters[self->parameters + 1];
    Config config = {{grid[0], grid[1], grid[2]}, {self->threads, 1, 1}, self->shared_bytes,
                     stream, NULL, 0};
    memcpy(image, self->image, self->bytes);
    for (unsigned n = 0; n < self->tensors; n++) {
        uint64_t address = table[places ? places[n] : n];
        if (!self->open[n].boxed) {
            memcpy(image + self->open[n].at, &address, sizeof address);
            continue;
        }
        int answer = self->replace(image + self->open[n].at, (void *)(uintptr_t)address);
        if (answer)
            return answer;
    }
    for (unsigned n = 0; n < self->parameters; n++)
        parameters[n] = image + self->offsets[n];
    return self->launch(&config, self->function, parameters, NULL);
}

/* A number of a tuple; -1 with an exception set where it is none, or does not lie under `end`. */
static int64_t number(PyObject *items, Py_ssize_t place, int64_t end)
{
    PyObject *item = PyTuple_GetItem(items, place);
    int64_t found = item ? PyLong_AsLongLong(item) : -1;
    if (PyErr_Occurred())
        return -1;
    if (found < 0 || found >= end) {
        PyErr_Format(PyExc_ValueError, "%lld lies outside [0, %lld)", (long long)found,
                     (long long)end);
        return -1;
    }
    return found;
}

static int word(PyObject *value, uint64_t *found)
{
    *found = PyLong_AsUnsignedLongLong(value);
    return *found == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
}

static void drop(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Kernel(launch, replace, function, threads, shared_bytes, image, offsets, tensors, boxed) */
static PyObject *kernel_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    unsigned long long launch, replace, function;
    unsigned threads, shared_bytes;
    PyObject *image, *offsets, *tensors, *boxed;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Kernel takes no names");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "KKKIISO!O!O!", &launch, &replace, &function, &threads,
                          &shared_bytes, &image, &PyTuple_Type, &offsets, &PyTuple_Type, &tensors,
                          &PyTuple_Type, &boxed))
        return NULL;
    Py_ssize_t bytes = PyBytes_Size(image), parameters = PyTuple_Size(offsets);
    Py_ssize_t count = PyTuple_Size(tensors);
    if (bytes > MOST_BYTES || parameters > MOST_PARAMETERS || count > MOST_PARAMETERS ||
        PyTuple_Size(boxed) != count) {
        PyErr_Format(PyExc_ValueError, "no kernel has %zd bytes and %zd parameters", bytes,
                     parameters);
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Kernel *self = (Kernel *)allocate(type, 0);
    if (!self)
        return NULL;
    self->launch = (Launch)(uintptr_t)launch;
    self->replace = (Replace)(uintptr_t)replace;
    self->function = (void *)(uintptr_t)function;
    self->threads = threads, self->shared_bytes = shared_bytes;
    self->bytes = bytes, self->parameters = parameters, self->tensors = count;
    self->image = malloc(bytes + 1);
    self->offsets = calloc(parameters + 1, sizeof *self->offsets);
    self->open = calloc(count + 1, sizeof *self->open);
    if (!self->image || !self->offsets || !self->open) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    memcpy(self->image, PyBytes_AsString(image), bytes);
    for (Py_ssize_t n = 0; n < parameters; n++) {
        int64_t at = number(offsets, n, bytes);
        if (at < 0)
            goto refused;
        self->offsets[n] = at;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        int64_t is_box = number(boxed, n, 2);
        int64_t at = is_box < 0 ? -1 : number(tensors, n, bytes - (is_box ? 127 : 7));
        if (at < 0)
            goto refused;
        self->open[n].at = at, self->open[n].boxed = is_box;
    }
    return (PyObject *)self;
refused:
    Py_DECREF(self);
    return NULL;
}

static void kernel_free(PyObject *object)
{
    Kernel *self = (Kernel *)object;
    free(self->image), free(self->offsets), free(self->open);
    drop(object);
}

/* kernel.launch(x, y, z, stream, *addresses): what the driver answers */
static PyObject *kernel_launch(PyObject *object, PyObject *const *given, Py_ssize_t count)
{
    Kernel *self = (Kernel *)object;
    uint64_t words[4], table[MOST_PARAMETERS];
    unsigned grid[3];
    int answer;
    if (count != 4 + (Py_ssize_t)self->tensors) {
        PyErr_Format(PyExc_TypeError, "%zd addresses for %u tensors", count - 4, self->tensors);
        return NULL;
    }
    for (unsigned n = 0; n < 4; n++)
        if (word(given[n], &words[n]))
            return NULL;
    for (unsigned n = 0; n < self->tensors; n++)
        if (word(given[4 + n], &table[n]))
            return NULL;
    for (unsigned n = 0; n < 3; n++)
        grid[n] = (unsigned)words[n];
    /* a full queue blocks, and what it waits for may want Python */
    Py_BEGIN_ALLOW_THREADS
    answer = queue(self, grid, (void *)(uintptr_t)words[3], table, NULL);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(answer);
}

static PyMethodDef kernel_methods[] = {
    {"launch", (PyCFunction)(void (*)(void))kernel_launch, METH_FASTCALL, "Queue one run."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot kernel_slots[] = {
    {Py_tp_new, kernel_new}, {Py_tp_dealloc, kernel_free}, {Py_tp_methods, kernel_methods},
    {0, NULL},
};
static PyType_Spec kernel_spec = {"native_launch.Kernel", sizeof(Kernel), 0, Py_TPFLAGS_DEFAULT,
                                  kernel_slots};
