package android.graphics.drawable;

public abstract class Drawable {
    public void setFilterBitmap(boolean filter) {}
}
