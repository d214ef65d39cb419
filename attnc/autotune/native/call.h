/* A recorded call: what it allocates, and its kernels over their grids. */
#define ALIGNED 16

typedef struct {
    Kernel *kernel;
    unsigned grid[3];
    unsigned *places;
} Step;

/* One call: `table` is the arguments' addresses, then those of `made`, of scratch, and `kept`. */
typedef struct {
    PyObject_HEAD
    PyObject *address, *allocate, *made, *scratch, *stream_of, *device, *check;
    unsigned arguments, offsets, kept, steps, entries;
    uint64_t *offset, *kept_address;
    Step *step;
} Call;

/* what a Call knows of its module: the type of kernels */
typedef struct {
    PyObject *kernel;
} State;

/* Call(address, allocate, made, scratch, offsets, kept, stream_of, device, check, arguments,
   steps): `made` and `scratch` hold the arguments of `allocate`, `device` that of `stream_of`;
   a step is (kernel, x, y, z, *places) */
static PyObject *call_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *address, *allocate, *made, *scratch, *offsets, *kept, *stream_of, *device, *check;
    PyObject *steps;
    unsigned arguments;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Call takes no names");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OOO!O!O!O!OO!OIO!", &address, &allocate, &PyTuple_Type, &made,
                          &PyTuple_Type, &scratch, &PyTuple_Type, &offsets, &PyTuple_Type, &kept,
                          &stream_of, &PyTuple_Type, &device, &check, &arguments, &PyTuple_Type,
                          &steps))
        return NULL;
    State *state = PyType_GetModuleState(type);
    if (!state)
        return NULL;
    allocfunc allocate_object = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Call *self = (Call *)allocate_object(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(address), Py_INCREF(allocate), Py_INCREF(made), Py_INCREF(scratch);
    Py_INCREF(stream_of), Py_INCREF(device), Py_INCREF(check);
    self->address = address, self->allocate = allocate, self->made = made;
    self->scratch = scratch, self->stream_of = stream_of, self->device = device;
    self->check = check, self->arguments = arguments;
    Py_ssize_t of_offsets = PyTuple_Size(offsets), of_kept = PyTuple_Size(kept);
    Py_ssize_t of_steps = PyTuple_Size(steps);
    Py_ssize_t entries = arguments + PyTuple_Size(made) + of_offsets + of_kept;
    if (entries > MOST_PARAMETERS) {
        PyErr_Format(PyExc_ValueError, "%zd tensors in one call", entries);
        goto refused;
    }
    self->offsets = of_offsets, self->kept = of_kept, self->entries = entries;
    self->offset = calloc(of_offsets + 1, sizeof *self->offset);
    self->kept_address = calloc(of_kept + 1, sizeof *self->kept_address);
    self->step = calloc(of_steps + 1, sizeof *self->step);
    if (!self->offset || !self->kept_address || !self->step) {
        PyErr_NoMemory();
        goto refused;
    }
    for (Py_ssize_t n = 0; n < of_offsets; n++)
        if (word(PyTuple_GetItem(offsets, n), &self->offset[n]))
            goto refused;
    for (Py_ssize_t n = 0; n < of_kept; n++)
        if (word(PyTuple_GetItem(kept, n), &self->kept_address[n]))
            goto refused;
    for (Py_ssize_t n = 0; n < of_steps; n++) {
        PyObject *given = PyTuple_GetItem(steps, n);
        PyObject *kernel = PyTuple_Check(given) ? PyTuple_GetItem(given, 0) : NULL;
        if (!kernel || !PyObject_TypeCheck(kernel, (PyTypeObject *)state->kernel)) {
            PyErr_SetString(PyExc_TypeError, "a step begins with a Kernel");
            goto refused;
        }
        Step *step = &self->step[n];
        unsigned tensors = ((Kernel *)kernel)->tensors;
        if (PyTuple_Size(given) != 4 + (Py_ssize_t)tensors) {
            PyErr_Format(PyExc_ValueError, "%zd places for %u tensors",
                         PyTuple_Size(given) - 4, tensors);
            goto refused;
        }
        step->places = calloc(tensors + 1, sizeof *step->places);
        if (!step->places) {
            PyErr_NoMemory();
            goto refused;
        }
        Py_INCREF(kernel);
        step->kernel = (Kernel *)kernel;
        self->steps = n + 1;
        for (unsigned axis = 0; axis < 3; axis++) {
            int64_t size = number(given, 1 + axis, (int64_t)1 << 31);
            if (size < 0)
                goto refused;
            step->grid[axis] = size;
        }
        for (unsigned i = 0; i < tensors; i++) {
            int64_t place = number(given, 4 + i, entries);
            if (place < 0)
                goto refused;
            step->places[i] = place;
        }
    }
    return (PyObject *)self;
refused:
    Py_DECREF(self);
    return NULL;
}

static void call_free(PyObject *object)
{
    Call *self = (Call *)object;
    for (unsigned n = 0; n < self->steps; n++) {
        Py_DECREF(self->step[n].kernel);
        free(self->step[n].places);
    }
    free(self->offset), free(self->kept_address), free(self->step);
    Py_XDECREF(self->address), Py_XDECREF(self->allocate), Py_XDECREF(self->made);
    Py_XDECREF(self->scratch), Py_XDECREF(self->stream_of), Py_XDECREF(self->device);
    Py_XDECREF(self->check);
    drop(object);
}

static int address_of(const Call *self, PyObject *tensor, uint64_t *found)
{
    PyObject *address = PyObject_CallFunctionObjArgs(self->address, tensor, NULL);
    if (!address)
        return -1;
    int refused = word(address, found);
    Py_DECREF(address);
    return refused;
}

/* Allocate and queue everything; 0, or -1 with an exception set. `held` keeps scratch alive. */
static int play(const Call *self, uint64_t *table, PyObject *results, PyObject **held)
{
    unsigned filled = self->arguments;
    uint64_t stream, start;
    int answer = 0;
    for (Py_ssize_t n = 0; n < PyTuple_Size(self->made); n++) {
        PyObject *tensor = PyObject_Call(self->allocate, PyTuple_GetItem(self->made, n), NULL);
        if (!tensor || PyTuple_SetItem(results, n, tensor) ||
            address_of(self, tensor, &table[filled++]))
            return -1;
    }
    if (self->offsets) {
        *held = PyObject_Call(self->allocate, self->scratch, NULL);
        if (!*held || address_of(self, *held, &start))
            return -1;
        for (unsigned n = 0; n < self->offsets; n++)
            table[filled++] = start + self->offset[n];
    }
    for (unsigned n = 0; n < self->kept; n++)
        table[filled++] = self->kept_address[n];
    PyObject *current = PyObject_Call(self->stream_of, self->device, NULL);
    if (!current)
        return -1;
    int refused = word(current, &stream);
    Py_DECREF(current);
    if (refused)
        return -1;
    Py_BEGIN_ALLOW_THREADS
    for (unsigned n = 0; n < self->steps && !answer; n++)
        answer = queue(self->step[n].kernel, self->step[n].grid, (void *)(uintptr_t)stream, table,
                       self->step[n].places);
    Py_END_ALLOW_THREADS
    if (!answer)
        return 0;
    PyObject *said = PyObject_CallFunction(self->check, "i", answer);
    if (said)
        PyErr_Format(PyExc_RuntimeError, "the driver answered %d", answer);
    Py_XDECREF(said);
    return -1;
}

/* call.run(arguments): the results, or None where an address is off its alignment */
static PyObject *call_run(PyObject *object, PyObject *arguments)
{
    Call *self = (Call *)object;
    uint64_t table[MOST_PARAMETERS], together = 0;
    if (!PyTuple_Check(arguments) || PyTuple_Size(arguments) != (Py_ssize_t)self->arguments) {
        PyErr_Format(PyExc_TypeError, "a tuple of %u tensors is wanted", self->arguments);
        return NULL;
    }
    for (unsigned n = 0; n < self->arguments; n++) {
        if (address_of(self, PyTuple_GetItem(arguments, n), &table[n]))
            return NULL;
        together |= table[n];
    }
    if (together % ALIGNED)
        Py_RETURN_NONE;
    PyObject *held = NULL, *results = PyTuple_New(PyTuple_Size(self->made));
    if (results && play(self, table, results, &held))
        Py_CLEAR(results);
    Py_XDECREF(held);
    return results;
}

static PyMethodDef call_methods[] = {
    {"run", call_run, METH_O, "Allocate, and queue every kernel."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot call_slots[] = {
    {Py_tp_new, call_new}, {Py_tp_dealloc, call_free}, {Py_tp_methods, call_methods}, {0, NULL},
};
static PyType_Spec call_spec = {"native_launch.Call", sizeof(Call), 0, Py_TPFLAGS_DEFAULT,
                                call_slots};
