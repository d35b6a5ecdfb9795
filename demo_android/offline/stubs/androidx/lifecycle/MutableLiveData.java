package androidx.lifecycle;

public class MutableLiveData<T> extends LiveData<T> {
    public void postValue(T value) {}
}
